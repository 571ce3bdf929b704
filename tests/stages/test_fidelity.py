"""What a checkpoint's weights and words became: no quantizer changes a weight's size, and a wrong scale is seen."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts import Checkpoint, DeviceModel
from stages.calibrate import calibrate
from stages.evaluation.fidelity import Change, vocabulary, weights
from stages.load import load
from stages.models.vlm import ModelConfig as Configuration
from stages.quantize import quantize
from stages.quantizers.gptq import gptq_affine, gptq_palette
from stages.quantizers.hqq import hqq
from stages.quantizers.nncf_weights import nncf_weights
from stages.quantizers.palettize import palettize
from stages.quantizers.rtn import round_to_nearest
from stages.schema import ModelConfig
from tests.conf import group
from tests.rounded import edited, rounded
from tests.tiny import workspace
from tests.toy import toy_checkpoint, toy_config

torch.set_num_threads(1)
GROUP, ROWS, COLUMNS = 32, 48, 128
GATE = 0.02  # of conf/validate
GPTQ = {"damping": 0.01, "activation_order": False}
UP = "text.layers.1.mlp.up_proj.weight"


def weight(seed: int, heavy: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(ROWS, COLUMNS, generator=generator) * 0.05
    if heavy:
        values *= torch.randn(ROWS, COLUMNS, generator=generator).abs()
    return values.half().float()


def moment(seed: int) -> torch.Tensor:
    """Of inputs that are correlated, and of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(COLUMNS, COLUMNS, generator=generator) * torch.logspace(0, -2, COLUMNS)[:, None]
    inputs = torch.randn(400, COLUMNS, generator=generator) @ mixing
    return inputs.T @ inputs / 400


def importance(seed: int) -> torch.Tensor:
    values = moment(seed).diagonal().expand(ROWS, COLUMNS)
    return values / values.mean() + 0.01


Make = Callable[[torch.Tensor, int, int, bool], Any]
QUANTIZERS: dict[str, Make] = {
    "rtn": lambda w, bits, seed, even: round_to_nearest(w, bits, GROUP, even),
    "rtn, searched": lambda w, bits, seed, even: round_to_nearest(w, bits, GROUP, even, search=True),
    "rtn, by importance": lambda w, bits, seed, even: round_to_nearest(
        w, bits, GROUP, even, search=True, importance=moment(seed).diagonal()
    ),
    "hqq": lambda w, bits, seed, even: hqq(w, bits, GROUP, even),
    "gptq": lambda w, bits, seed, even: gptq_affine(w, moment(seed), bits, GROUP, even, search=True, **GPTQ),
    "gptq, refined": lambda w, bits, seed, even: gptq_affine(
        w, moment(seed), bits, GROUP, even, search=True, refinement=2, **GPTQ
    ),
    "palette": lambda w, bits, seed, even: palettize(w, bits, 16, None, channel_scale=even),
    "palette, by importance": lambda w, bits, seed, even: palettize(w, bits, 16, importance(seed)),
    "palette of vectors": lambda w, bits, seed, even: palettize(w, min(bits, 4), 16, None, vector=2),
    "gptq, palette": lambda w, bits, seed, even: gptq_palette(w, moment(seed), bits, 16, None, refinement=2, **GPTQ),
}


def change(before: torch.Tensor, after: torch.Tensor) -> Change:
    return Change().add(before.numpy(), after.numpy())


@given(
    st.sampled_from(sorted(QUANTIZERS)),
    st.sampled_from([2, 3, 4, 6, 8]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 999),
)
@settings(max_examples=60)
def test_no_quantizer_changes_the_size_of_a_weight(name: str, bits: int, even: bool, heavy: bool, seed: int) -> None:
    before = weight(seed, heavy)
    after = QUANTIZERS[name](before, bits, seed, even).dense()
    found = change(before, after)
    assert found.scale_error < GATE * 0.75
    expected = float((before - after).double().norm() / before.double().norm())
    assert found.error == pytest.approx(expected, rel=1e-6)


@given(
    st.sampled_from(sorted(set(QUANTIZERS) - {"palette of vectors"})),
    st.sampled_from([4, 6, 8]),
    st.sampled_from([1.1, 0.9]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 999),
)
@settings(max_examples=60)
def test_scales_off_by_a_tenth_are_seen(
    name: str, bits: int, factor: float, even: bool, heavy: bool, seed: int
) -> None:
    """At 2 and 3 bits the rest of the change can hide it."""
    before = weight(seed, heavy)
    assert change(before, QUANTIZERS[name](before, bits, seed, even).dense() * factor).scale_error > 2.5 * GATE


@given(st.sampled_from(["rtn", "hqq"]), st.sampled_from([1.1, 0.9]), st.booleans(), st.integers(0, 999))
def test_what_is_rounded_to_three_bits_shows_it_too(name: str, factor: float, even: bool, seed: int) -> None:
    before = weight(seed, heavy=False)
    assert change(before, QUANTIZERS[name](before, 3, seed, even).dense() * factor).scale_error > GATE


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("even", [True, False])
def test_nncf_s_weights(bits: int, even: bool) -> None:
    before = weight(5, heavy=False)
    after = nncf_weights(before, bits, GROUP if bits == 4 else COLUMNS, even).dense()
    assert change(before, after).scale_error < GATE / 2
    assert change(before, after * 1.1).scale_error > 2.5 * GATE < change(before, after * 0.9).scale_error


@given(st.lists(st.integers(1, ROWS - 1), max_size=6), st.integers(0, 99))
def test_blocks_add_up_to_the_whole(cuts: list[int], seed: int) -> None:
    before = weight(seed, heavy=True)
    after = round_to_nearest(before, 4, GROUP, True).dense() * 1.05
    parts, edges = Change(), [0, *sorted(cuts), ROWS]
    for start, stop in itertools.pairwise(edges):
        parts.add(before[start:stop].numpy(), after[start:stop].numpy())
    whole = change(before, after)
    assert (parts.error, parts.scale_error) == pytest.approx((whole.error, whole.scale_error), rel=1e-9)


@pytest.mark.parametrize(
    ("before", "after", "error", "scale"),
    [
        ([1.0, -2.0], [1.0, -2.0], 0.0, 0.0),
        ([1.0, -2.0], [1.5, -3.0], 0.5, 0.5),
        ([1.0, -2.0], [0.5, -1.0], 0.5, 0.5),
        ([1.0, -2.0], [0.0, 0.0], 1.0, 1.0),  # the weight is gone
        ([1.0, -2.0], [-1.0, 2.0], 2.0, 1.0),  # turned round
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0),
    ],
)
def test_by_hand(before: list[float], after: list[float], error: float, scale: float) -> None:
    found = Change().add(np.array(before), np.array(after))
    assert (found.error, found.scale_error) == pytest.approx((error, scale))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return toy_checkpoint(tmp_path_factory.mktemp("toy"), layers=2)


@pytest.mark.parametrize("formats", [{"bits": 4}, {"bits": 8}, {"bits": 0, "embeddings": 0, "convolutions": 0}])
def test_every_quantized_weight_is_told_of(formats: dict[str, int], checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = rounded(checkpoint, tmp_path / "model", **formats)
    layers, kept = weights(checkpoint, model)
    store = model.store()
    quantized = {name for name in store.names() if store.format(name).format != "float"}
    assert kept and {layer.name for layer in layers} == quantized
    assert bool(quantized) == bool(formats["bits"])
    with checkpoint.tensors() as tensors:
        for layer in layers:
            expected = change(
                tensors[layer.name].float().reshape(-1), torch.from_numpy(store.dense(layer.name)).reshape(-1)
            )
            assert layer.error == pytest.approx(expected.error, rel=5e-6)  # six digits
            assert 0 < layer.error < 0.2
            assert layer.scale < GATE
            said = layer.to_json()
            assert said["bytes"] == store.format(layer.name).bytes
            assert said["parameters"] == tensors[layer.name].numel()
    names = {layer.name: layer.to_json()["bits"] for layer in layers}
    if formats["bits"]:
        assert names[UP] == formats["bits"] and names["text.embed_tokens.weight"] == 8


@pytest.mark.parametrize("factor", [1.1, 0.9])
def test_the_damaged_layer_is_the_worst(factor: float, checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = rounded(checkpoint, tmp_path / "model")
    damaged = edited(model, tmp_path / "damaged", f"{UP}.scales", lambda scales: scales * factor)
    layers, kept = weights(checkpoint, damaged)
    first, second = sorted(layers, key=lambda layer: -layer.scale)[:2]
    assert kept and first.name == UP and first.scale > 2.5 * GATE > GATE > second.scale


def test_another_norm_is_no_rounding(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As training, or a method that moves scales from layer to layer, would leave it."""
    model = rounded(checkpoint, tmp_path / "model")
    assert weights(checkpoint, model)[1] == 1
    trained = edited(model, tmp_path / "trained", "text.norm.weight", lambda values: values * 1.01)
    layers, same = weights(checkpoint, trained)
    assert 0.9 < same < 1 and len(layers) == len(weights(checkpoint, model)[0])


def test_awq_moves_scales_and_gptq_does_not(tmp_path: Path) -> None:
    source: Configuration = toy_config()
    toy_checkpoint(tmp_path / "files", config=source)
    checkpoint = load(ModelConfig(str(tmp_path / "files"), None, None, None, None, None), workspace(tmp_path / "load"))
    settings = group("calibrate", "default", samples=4, batch=2, tokens=12)
    calibration = calibrate(checkpoint, settings, workspace(tmp_path / "calibrate"))
    kept = {
        name: weights(
            checkpoint, quantize(checkpoint, group("quantize", name), workspace(tmp_path / name), calibration)
        )
        for name in ("awq", "int4")
    }
    assert kept["awq"][1] < 1 and kept["int4"][1] == 1
    assert max(layer.scale for layer in kept["int4"][0]) < GATE


def test_words_that_changed_places_are_counted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert vocabulary(checkpoint, DeviceModel(checkpoint.path)) == 1.0
    text = json.loads((checkpoint.path / "tokenizer.json").read_text(encoding="utf-8"))
    words = text["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(text), encoding="utf-8")
    total = len(words) + len(text["added_tokens"])
    assert vocabulary(checkpoint, DeviceModel(tmp_path)) == pytest.approx(1 - 2 / total)
    text["added_tokens"] = text["added_tokens"][:-1]  # and one is gone
    (tmp_path / "tokenizer.json").write_text(json.dumps(text), encoding="utf-8")
    assert vocabulary(checkpoint, DeviceModel(tmp_path)) == pytest.approx(1 - 3 / total)


def test_sums_do_not_follow_the_number_of_threads() -> None:
    script = (
        "import numpy as np; from stages.evaluation.fidelity import Change; random = np.random.default_rng(1); "
        "print(Change().add(random.standard_normal(400_000), random.standard_normal(400_000)))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "4")
    }
    assert len(said) == 1
