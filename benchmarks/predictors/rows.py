"""Rows of the two public tables, read, without aliases, and as features and situations."""

import csv
import gzip
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import nan, prod
from pathlib import Path

import numpy as np

from stages.devices.calibration import Array

from .names import arithmetic, decoder_of, relatives

HERE = Path(__file__).parent
PERF, LLM, DEVICES, CHIPS = (
    HERE / name for name in ("qai_perf.csv.gz", "qai_llm.csv.gz", "qai_devices.csv", "chips.csv")
)

# Of the quantities: the column, and whether it is a rate, of which milliseconds are made.
PERF_COLUMNS = {"encode": "latency_ms", "memory": "peak_memory_max_mb"}
LLM_COLUMNS = {"decode": "decode_tokens_per_s", "prefill": "prefill_tokens_per_s", "first_token": "ttft_max_ms"}

# Of a usual processor, to whose speed arithmetic is scaled.
CPU_GFLOPS, NPU_GOPS, GPU_GB_S = 1000.0, 45000.0, 76.8

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}
_CLASSES = {"float": "float", "mixed_with_float": "float", "w8a8": "w8a8", "w8a8_mixed_int16": "w8a8"}
_BITS = {"q4_0": 4.5, "w4a16": 4.2, "w4": 4.2, "q8_0": 8.5, "mxfp4": 4.25}  # with scales
_TYPICAL = {"parameters": 2e7, "pixels": 5e4}  # where a row has none


@dataclass(frozen=True)
class Table:
    """Rows (n,) of one quantity. measured: milliseconds or MB. known: whether the model's arithmetic is published."""

    quantity: str
    features: dict[str, Array]
    situations: list[dict[str, str]]
    measured: Array
    models: list[str]
    relatives: list[str]
    known: Array

    def __len__(self) -> int:
        return len(self.situations)

    @property
    def chips(self) -> list[str]:
        return [situation["chip"] for situation in self.situations]

    def take(self, index: Array) -> "Table":
        return Table(
            self.quantity,
            {name: values[index] for name, values in self.features.items()},
            [self.situations[i] for i in index],
            self.measured[index],
            [self.models[i] for i in index],
            [self.relatives[i] for i in index],
            self.known[index],
        )


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, gzipped or not, without the aliases: of rows that differ in their device alone, the first."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        found.setdefault(tuple(value for name, value in row.items() if name != "device"), row)
    return list(found.values())


def tables(rows: list[dict[str, str]]) -> list[Table]:
    """All quantities of rows of either kind, which their columns tell."""
    if rows and "latency_ms" in rows[0]:
        return [perf_table(rows, quantity) for quantity in PERF_COLUMNS]
    if rows and "decode_tokens_per_s" in rows[0]:
        return [llm_table(rows, quantity) for quantity in LLM_COLUMNS]
    raise SystemExit("expected the columns of qai_perf.csv.gz or of qai_llm.csv.gz")


def perf_table(rows: Iterable[Mapping[str, str]], quantity: str) -> Table:
    rows = [row for row in rows if _number(row[PERF_COLUMNS[quantity]]) > 0]
    gigamacs = np.array([arithmetic(row["model"], row["component"]) for row in rows])
    parameters = np.array([_parameters(row) for row in rows])
    pixel = np.array([pixels(row["input_resolution"]) for row in rows])
    features = {
        "launch": np.ones(len(rows)),
        "operators": np.array([_number(row["layers"]) for row in rows]),
        "gigaflops": 2 * gigamacs,
        "megaparameters": _filled(parameters, "parameters") / 1e6,
        "megapixels": _filled(pixel, "pixels") / 1e6,
        "given_parameters": parameters,
        "given_pixels": pixel,
        "text": np.array(
            [float("token" in row["input_resolution"] or "seqlen" in row["input_resolution"]) for row in rows]
        ),
        "one_step": np.array([float(bool(re.search("decoder|joiner|text", row["component"]))) for row in rows]),
    }
    features["one_step"] *= np.isnan(pixel)
    situations = [
        {
            **chip_levels(row["device"]),
            "runtime": row["runtime"],
            "unit": row["compute_unit"].lower(),
            "precision": _CLASSES.get(row["precision"], "w8a16"),
        }
        for row in rows
    ]
    measured = np.array([_number(row[PERF_COLUMNS[quantity]]) for row in rows])
    models = [row["model"] for row in rows]
    return Table(
        quantity, features, situations, measured, models, [relatives(model) for model in models], np.isfinite(gigamacs)
    )


def llm_table(rows: Iterable[Mapping[str, str]], quantity: str) -> Table:
    """Milliseconds of a token (decode), of a token of the prompt (prefill), of the whole prompt (first_token)."""
    column = LLM_COLUMNS[quantity]
    rows = [row for row in rows if _number(row[column]) > 0]
    decoders = [decoder_of(row["model"], row["parameters"]) for row in rows]
    context = np.array([_number(row["context_length"]) for row in rows])
    bandwidth = np.array([hardware(row["device"])["bandwidth_gb_s"] for row in rows])
    bits = np.array([_BITS.get(row["precision"], 4.5) for row in rows])
    gigaweights = np.array([each.weights for each in decoders]) / 1e9
    tokens = context if quantity == "first_token" else np.ones(len(rows))
    speed = np.array([_speed(row["device"], row["compute_unit"].lower()) for row in rows])
    features = {
        "launch": np.ones(len(rows)),
        "operators": np.array([each.layers for each in decoders]),
        "weights_ms": gigaweights * bits / 8 / bandwidth * 1e3,
        "cache_ms": np.array([each.cache for each in decoders]) * 2 * context / bandwidth / 1e6,
        "compute": tokens * np.array([2 * each.block for each in decoders]) / 1e9 / speed,
        "attention": tokens * np.array([2 * each.scores for each in decoders]) * context / 1e9 / speed,
        "gigaweights": gigaweights,
        "context": context,
    }
    situations = [
        {
            **chip_levels(row["device"]),
            "path": f"{row['runtime']}/{row['compute_unit'].lower()}",
            "unit": row["compute_unit"].lower(),
            "precision": row["precision"],
            "kind": each.kind,
        }
        for row, each in zip(rows, decoders, strict=True)
    ]
    values = np.array([_number(row[column]) for row in rows])
    models = [row["model"] for row in rows]
    return Table(
        quantity,
        features,
        situations,
        values if quantity == "first_token" else 1e3 / values,
        models,
        [relatives(model) for model in models],
        np.array([each.kind == "named" for each in decoders]),
    )


def _speed(device: str, unit: str) -> float:
    """Of a processor, to a usual one: by the peak of CPU or NPU, and of GPUs, whose peaks are not published, by the
    bandwidth."""
    known = hardware(device)
    if unit == "cpu":
        return known["cpu_float32_gflops"] / CPU_GFLOPS
    return known["npu_int8_gops"] / NPU_GOPS if unit == "npu" else known["bandwidth_gb_s"] / GPU_GB_S


def chip_levels(device: str) -> dict[str, str]:
    """chip: Hexagon's version and the number of the SoC; htp: that version; device, and its form."""
    row = _devices().get(device)
    if row is None:
        return {"chip": device, "device": device}
    chip = f"{row['htp_version']}/{row['soc_model']}"
    return {"htp": row["htp_version"], "chip": chip, "device": device, "form": row["form_factor"]}


def chip_names() -> dict[str, str]:
    """The chip of each public device, by its name and by its chipset's."""
    names = {}
    for device, row in sorted(_devices().items()):
        names[device] = names[row["chipset"]] = f"{row['htp_version']}/{row['soc_model']}"
    return names


@lru_cache
def hardware(device: str) -> dict[str, float]:
    """What is publicly known of a device's chip; where nothing is, the median of the chips of about its Hexagon."""
    with CHIPS.open(encoding="utf-8") as file:
        known = {
            row.pop("device"): {name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)
        }
    own = dict(known.get(device, {}))
    version = _number(_devices()[device]["htp_version"]) if device in _devices() else 73.0
    for name in ("bandwidth_gb_s", "npu_int8_gops", "cpu_float32_gflops"):
        if not own.get(name, nan) > 0:
            near: dict[float, list[float]] = {}
            for other, values in known.items():
                if values[name] > 0:
                    near.setdefault(abs(_number(_devices()[other]["htp_version"]) - version), []).append(values[name])
            own[name] = float(np.median(near[min(near)]))
    return own


def pixels(text: str) -> float:
    """Of an input's resolution, as it is written: "224x224", "720p (720x1280)", "1 x 6 x 3 x 256 x 704" (all of its
    images); nan where it tells of none."""
    text = text.split(",")[0].lower().replace("*", "x")
    if bracket := re.search(r"\((\d+\s*x\s*\d+)\)", text):
        text = bracket[1]
    if not (found := re.search(r"\d+(?:\s*x\s*\d+)+", text)):
        return nan
    sizes = [int(size) for size in found[0].split("x")]
    if len(sizes) > 2:
        sizes = [size for size in sizes if size > 3]
    return float(prod(sizes)) if len(sizes) >= 2 else nan


def count(text: str) -> float:
    """Of parameters or bytes: "83.92M", "~1.13 GB", "2B (effective)"; nan where it is none."""
    found = re.search(r"([\d.]+)\s*([KMBG]?)", text.replace(",", ""), re.IGNORECASE)
    return float(found[1]) * _UNITS[found[2].upper()] if found else nan


def _parameters(row: Mapping[str, str]) -> float:
    """As given, or of the float32 file's size."""
    given = count(row["parameters"])
    return given if given > 0 else count(row["model_size"]) / 4


def _filled(values: Array, name: str) -> Array:
    return np.where(np.isfinite(values), values, _TYPICAL[name])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


@lru_cache
def _devices() -> dict[str, dict[str, str]]:
    with DEVICES.open(encoding="utf-8") as file:
        return {row["device"]: row for row in csv.DictReader(file)}
