"""What predictions are calibrated on: rows as published, names, folds, and that what ships comes of them."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.predictors.fitting import FORMS, fitted
from benchmarks.predictors.folds import by_groups, coverage, intervals, prepared
from benchmarks.predictors.imputing import Imputer
from benchmarks.predictors.naive import half, naive
from benchmarks.predictors.names import arithmetic, decoder_of, relatives, sized
from benchmarks.predictors.rows import (
    LLM,
    PERF,
    Table,
    chip_levels,
    count,
    hardware,
    llm_table,
    perf_table,
    pixels,
    read,
)
from benchmarks.predictors.shipping import IMPUTER, all_tables, calibrated, text_of
from stages.devices.calibration import FILE, Calibration, Model, calibration

ROOT = Path(__file__).parents[2]
ROUNDED = 5e-3  # processors of different kinds sum up in different orders: 1e-3 was seen


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("83.92M", 83.92e6),
        ("~1.13 GB", 1.13e9),
        ("447 KB", 447e3),
        ("2B (effective)", 2e9),
        ("555K", 555e3),
        ("255M", 255e6),
    ],
)
def test_counts_are_read_as_they_are_written(text: str, value: float) -> None:
    assert count(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("224x224", 224 * 224),
        ("720p (720x1280)", 720 * 1280),
        ("416p (416x416)", 416 * 416),
        ("1 x 3 x 512 x 512", 512 * 512),
        ("1 x 6 x 3 x 256 x 704", 6 * 256 * 704),
        ("640*640", 640 * 640),
        ("640x480 (grayscale)", 640 * 480),
        ("1x1x96x64", 96 * 64),
        ("80x3000 (30 seconds audio)", 80 * 3000),
    ],
)
def test_resolutions_are_read_as_they_are_written(text: str, value: int) -> None:
    assert pixels(text) == value


@pytest.mark.parametrize("text", ["", "256 tokens (German text)", "unknown"])
def test_what_is_no_number_is_none(text: str) -> None:
    assert isnan(pixels(text)) and isnan(count("")) and isnan(count("none"))


def test_aliases_are_one_measurement() -> None:
    """Galaxy S25 and Q-8750 have the same rows."""
    kept = read(PERF)
    every = gzip.decompress(PERF.read_bytes()).decode().splitlines()
    assert len(kept) < 0.8 * (len(every) - 1)
    keys = [tuple(value for name, value in row.items() if name != "device") for row in kept]
    assert len(keys) == len(set(keys))
    assert chip_levels("Samsung Galaxy S25")["chip"] == chip_levels("Dragonwing Q-8750")["chip"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen3_0_6b", 0.6e9),
        ("gemma_4_e2b_it", 2e9),
        ("jais_6p7b_chat", 6.7e9),
        ("ministral_3_3b_instruct", 3e9),
        ("llama_v3_2_1b", 1e9),
    ],
)
def test_a_name_tells_a_size(name: str, parameters: float) -> None:
    assert sized(name) == pytest.approx(parameters)


def test_a_name_that_nobody_has_seen_is_predicted_from_its_size() -> None:
    small, large = decoder_of("unseen_1b_chat"), decoder_of("unseen_7b_chat")
    assert small.kind == large.kind == "sized" and small.weights < large.weights and small.cache < large.cache
    assert decoder_of("unseen", "3.8B").weights == pytest.approx(3.8e9)
    assert decoder_of("unseen").weights > 0
    named = decoder_of("llama_v3_2_1b_instruct")
    assert named.kind == "named" and named.weights == pytest.approx(1.24e9, rel=0.02)
    assert sized("no_size") is None and isnan(arithmetic("unseen", "encoder"))


def test_relatives_stay_together() -> None:
    assert relatives("whisper_small_quantized") == relatives("whisper_small") == relatives("distil_whisper")
    assert relatives("opus_mt_de_en") == relatives("opus_mt_en_zh")
    assert relatives("qwen3_4b_instruct_2507") == relatives("qwen3_4b") == relatives("intern3_5_vl_4b")
    assert relatives("llama_v3_2_3b_instruct_ssd") == relatives("llama_v3_2_3b_instruct") != relatives("llama_v3_1_8b")
    assert relatives("resnet18") != relatives("resnet50")


def test_bandwidth_and_peaks_that_are_not_published_are_those_of_the_like() -> None:
    assert hardware("Samsung Galaxy S24")["bandwidth_gb_s"] == 76.8
    assert hardware("Snapdragon 8 Elite Gen 6 QRD")["npu_int8_gops"] > 0


def test_what_is_estimated_follows_what_a_row_has() -> None:
    table = perf_table(read(PERF), "encode")
    filled = Imputer.fit(table).fill(table)
    assert np.isfinite(filled.features["gigaflops"]).all() and (filled.features["gigaflops"] > 0).all()
    known = table.known
    assert (filled.features["gigaflops"][known] == table.features["gigaflops"][known]).all()
    ratio = Imputer.fit(table).fill(perf_like(table, known=False)).features["gigaflops"] / table.features["gigaflops"]
    assert 0.4 < np.median(ratio[known]) < 2.5


def perf_like(table: Table, *, known: bool) -> Table:
    return replace(table, known=np.full(len(table), known))


def test_decode_on_held_out_models_is_within_the_target() -> None:
    """Of its errors on all models the benchmark tells; here, three folds of the language models."""
    table = llm_table(read(LLM), "decode")
    held = by_groups(table, table.relatives, 3)
    ours = np.abs(table.measured / np.exp(held.logarithms) - 1)
    assert np.median(ours) <= 0.3
    assert np.median(ours) <= 0.5 * np.median(np.abs(table.measured / naive(table) - 1))
    assert np.median(ours) < np.median(np.abs(table.measured / half(table) - 1))
    assert 0.8 <= coverage(table, held, chip_known=True) <= 1.0
    for fold in range(3):
        inside = {model for model, each in zip(table.relatives, held.folds, strict=True) if each == fold}
        outside = {model for model, each in zip(table.relatives, held.folds, strict=True) if each != fold}
        assert inside and not inside & outside


def test_a_model_of_few_rows_still_has_an_interval() -> None:
    table = llm_table(read(LLM), "decode")
    held = by_groups(table, table.relatives, 3)
    found = intervals(table, held, np.flatnonzero(held.folds != 0), chip_known=True)
    assert found["known chip"][0] < 0 < found["known chip"][1]
    assert "known chip, qnn_context_binary/npu" not in found  # ten rows


def leaves(value: Any, place: str = "") -> tuple[list[str], list[float]]:
    """Return whatever stands in a JSON value with its place, but for its numbers, and its numbers."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return [place], [value]
    if not isinstance(value, dict | list):
        return [f"{place} {value}"], []
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = [leaves(each, f"{place}/{name}") for name, each in entries]
    return [name for names, _ in found for name in names], [number for _, numbers in found for number in numbers]


def test_what_ships_is_fitted_to_the_data() -> None:
    """One quantity of it; all of it in the slow test."""
    shipped = json.loads(FILE.read_text(encoding="utf-8"))["models"]["decode"]
    again = json.loads(text_of(fitted(llm_table(read(LLM), "decode"), FORMS["decode"])))
    names, numbers = leaves({name: shipped[name] for name in again})
    assert leaves(again) == (names, pytest.approx(numbers, rel=ROUNDED, abs=ROUNDED))


@pytest.mark.slow
def test_all_that_ships_comes_of_the_data() -> None:
    """By what it predicts: a last bit may be what a tree divides by."""
    values, weights = calibrated()
    assert weights == pytest.approx(json.loads(IMPUTER.read_text(encoding="utf-8")), rel=ROUNDED)
    again, shipped = Calibration.of(json.loads(text_of(values))), calibration()
    assert (again.chips, again.constants) == (shipped.chips, pytest.approx(shipped.constants, rel=ROUNDED))
    for quantity, table in all_tables().items():
        filled = prepared(table, [])[0]
        two = [each.models[quantity].logarithms(filled.features, filled.situations) for each in (again, shipped)]
        assert np.median(np.abs(two[0] - two[1])) <= 4 * ROUNDED, quantity
        ends = [np.array([*each.models[quantity].intervals.values()]) for each in (again, shipped)]
        assert np.median(np.abs(ends[0] - ends[1])) <= 10 * ROUNDED, quantity


@pytest.mark.slow
def test_encoders_of_held_out_models_are_within_the_target() -> None:
    table = perf_table(read(PERF), "encode")
    held = by_groups(table, table.models)
    errors = np.abs(np.exp(held.logarithms) / table.measured - 1)
    assert np.median(errors) <= 0.4 and np.median(errors[table.known]) <= 0.35
    assert 0.8 <= coverage(table, held, chip_known=True) <= 1.0
    roofline = naive(Imputer.fit(table).fill(table))
    assert np.median(errors) <= 0.5 * np.median(np.abs(roofline / table.measured - 1))


@pytest.mark.slow
def test_the_benchmark_scores_rows_that_nobody_has_seen(tmp_path: Path) -> None:
    """Of either kind, gzipped or not; a chip and a runtime that were never measured are those of the others."""
    header, *rows = gzip.decompress(PERF.read_bytes()).decode().splitlines()
    unseen = [row.replace("act,ACT", "unseen,Unseen").replace("Arduino VENTUNO Q", "Some Phone") for row in rows[:20]]
    (tmp_path / "perf.csv").write_text("\n".join([header, *unseen]) + "\n", encoding="utf-8")
    header, *rows = gzip.decompress(LLM.read_bytes()).decode().splitlines()
    unseen = [row.replace("falcon_v3_7b", "unseen_7b").replace("genie,", "other,") for row in rows[:20]]
    (tmp_path / "llm.csv.gz").write_bytes(gzip.compress(("\n".join([header, *unseen]) + "\n").encode()))
    command = [sys.executable, "benchmarks/predictors.py", "--test", str(tmp_path / "perf.csv")]
    command += [str(tmp_path / "llm.csv.gz"), "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert [each["quantity"] for each in figures] == ["encode", "memory", "decode", "prefill", "first_token"]
    assert all(each["rows"] > 0 and each["ours"] > 0 and each["split"] == "test" for each in figures)
    assert "encoder latency" in done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_trees_never_fall_in_what_is_work() -> None:
    model = calibration().models["encode"]
    situation = {"unit": "npu", "precision": "float", "runtime": "onnx", "htp": "75", "chip": "75/57"}
    base = {"launch": 1.0, "operators": 300.0, "gigaflops": 20.0, "megaparameters": 30.0, "megapixels": 0.25}
    base |= {"given_parameters": 30e6, "given_pixels": 0.25e6, "known": 2.0, "version": 75.0}
    pairs = {"operators": (), "gigaflops": (), "megaparameters": ("given_parameters",), "megapixels": ("given_pixels",)}
    for name, others in pairs.items():
        times = [time_of(model, base, situation, (name, *others), factor) for factor in np.geomspace(0.02, 50, 40)]
        assert all(later > earlier for earlier, later in pairwise(times)), name


def time_of(
    model: Model, base: dict[str, float], situation: dict[str, str], names: tuple[str, ...], factor: float
) -> float:
    features = {**base, **{name: base[name] * factor for name in names}}
    return model.estimate(features, situation, "known chip, npu, published").value


def test_an_unknown_hexagon_is_as_the_nearest() -> None:
    model = calibration().models["encode"]
    versions = sorted(model.effects["htp"], key=float)
    features = {"launch": 1.0, "operators": 300.0, "gigaflops": 20.0, "megaparameters": 30.0, "megapixels": 0.25}
    features |= {"given_parameters": 30e6, "given_pixels": 0.25e6, "known": 2.0, "version": 75.0}

    def value(version: str) -> float:
        situation = {"unit": "npu", "precision": "float", "runtime": "onnx", "htp": version}
        return model.estimate(features, situation, "unknown chip").value

    assert value("999") == value(versions[-1]) != value(versions[0]) == value("1")
