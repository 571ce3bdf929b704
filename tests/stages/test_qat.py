"""Quantization-aware training: what it keeps, what it lowers, and that a kill changes nothing."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import StageError
from stages.artifacts import Checkpoint
from stages.distillation.source import ProceduralQuestions
from stages.models.vlm import VisionLanguageModel
from stages.quantizers.grids import Result, learned, start
from stages.quantizers.layers import quantizable_layers
from stages.quantizers.palettize import palettize
from stages.quantizers.qat import STATE, train
from stages.quantizers.results import Affine, Float, Palette
from stages.quantizers.rtn import round_to_nearest
from tests.reader import config, divergence, reader, shape, workspace

CONFIG = config(steps=12, learning_rate=0.02, warmup=3, checkpoint_every=2)
FORMATS = {
    "affine 2": lambda weight: round_to_nearest(weight, 2, math.gcd(32, weight.shape[1]), False),
    "affine 3, symmetric": lambda weight: round_to_nearest(weight, 3, weight.shape[1], True),
    "affine 8": lambda weight: round_to_nearest(weight, 8, weight.shape[1], True),
    "palette 2": lambda weight: palettize(weight, 2, math.gcd(8, len(weight))),
    "palette 1, a row each": lambda weight: palettize(weight, 1, 1),
    "palette 1, with scales": lambda weight: scaled(weight),
    "palette of vectors": lambda weight: vectors(weight),
    "float": lambda weight: Float(weight),
}


def scaled(weight: torch.Tensor) -> Palette:
    scales = weight.abs().mean(1).clamp_min(1e-3).half()
    plain = palettize(weight / scales.float().unsqueeze(1), 1, math.gcd(8, len(weight)))
    return Palette(plain.codes, plain.palette, plain.group_size, scales)


def vectors(weight: torch.Tensor) -> Palette:
    """Pairs of rows, 16 entries: the first 16 pairs."""
    pairs = weight.reshape(-1, 2, weight.shape[1]).transpose(1, 2)
    entries = pairs.reshape(-1, 2)[:16].half()
    codes = torch.cdist(pairs.reshape(-1, 2), entries.float()).argmin(1).to(torch.uint8)
    return Palette(codes.view(len(pairs), -1), entries.unsqueeze(0), len(weight))


def quantized(checkpoint: Checkpoint, kind: str) -> dict[str, Result]:
    model = checkpoint.model()
    layers = quantizable_layers(model)
    weights = dict(model.named_parameters())
    return {name: FORMATS[kind](weights[name].detach().flatten(1)) for name in layers}


def loaded(checkpoint: Checkpoint, results: dict[str, Result], floats: dict[str, torch.Tensor]) -> VisionLanguageModel:
    model = checkpoint.model()
    state = model.state_dict()
    state |= floats | {name: result.dense().view(state[name].shape) for name, result in results.items()}
    model.load_state_dict(state)
    return model


def parts(result: Result) -> list[torch.Tensor]:
    return [value for value in vars(result).values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "float"])
def test_training_keeps_each_format_and_lowers_the_divergence(kind: str, tmp_path: Path) -> None:
    checkpoint = reader(tmp_path / "teacher")
    source = ProceduralQuestions(checkpoint, seed=1, batch=2, workers=0)
    before = quantized(checkpoint, kind)
    rate = 1e-4 if kind == "affine 8" else CONFIG.learning_rate  # what is nearly right already is moved gently
    training = dataclasses.replace(CONFIG, learning_rate=rate, checkpoint_every=100)
    after, floats = train(checkpoint, before, training, workspace(tmp_path), source)
    assert after.keys() == before.keys()
    assert after.keys() | floats.keys() == set(checkpoint.model().state_dict())
    for name, result in after.items():
        first = before[name]
        assert type(result) is type(first)
        assert [(part.dtype, part.shape) for part in parts(result)] == [(p.dtype, p.shape) for p in parts(first)]
        if isinstance(result, Affine) and isinstance(first, Affine):
            assert torch.equal(result.zero_points, first.zero_points)
            most = max(int(first.codes.max()), int(first.zero_points.max()))
            assert int(result.codes.max()).bit_length() <= most.bit_length()
        elif isinstance(result, Palette) and isinstance(first, Palette):
            assert result.group_size == first.group_size
            assert int(result.codes.max()) < result.palette.shape[1]
            assert result.vector > 1 or (result.palette.float().diff(dim=1) >= 0).all()
    assert all(torch.equal(value, value.half().float()) for value in floats.values())
    assert divergence(checkpoint, loaded(checkpoint, after, floats)) < divergence(
        checkpoint, loaded(checkpoint, before, {})
    )


def test_a_head_of_two_matrices_is_trained_too(tmp_path: Path) -> None:
    checkpoint = reader(tmp_path / "teacher", size=shape(num_attention_heads=1, head_rank=32))
    source = ProceduralQuestions(checkpoint, seed=1, batch=2, workers=0)
    before = quantized(checkpoint, "affine 2")
    training = dataclasses.replace(CONFIG, checkpoint_every=100)
    after, floats = train(checkpoint, before, training, workspace(tmp_path), source)
    for name in ("text.lm_head.down.weight", "text.lm_head.up.weight", "text.layers.0.self_attn.o_proj.weight"):
        assert not torch.equal(after[name].dense(), before[name].dense())
    assert divergence(checkpoint, loaded(checkpoint, after, floats)) < divergence(
        checkpoint, loaded(checkpoint, before, {})
    )


@given(kind=st.sampled_from(sorted(FORMATS)), seed=st.integers(0, 99), share=st.sampled_from([None, 0.5]))
def test_what_is_trained_is_what_the_result_holds(kind: str, seed: int, share: float | None) -> None:
    """At any latent weight, scales and entries, the forward pass computes with dense(), bit for bit."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, 64, generator=generator) * 0.1
    result = FORMATS[kind](weight)
    if share is not None:
        object.__setattr__(result, "mask", torch.rand(weight.shape, generator=generator) < share)
    grid = learned(result, weight)
    latent = grid.right_inverse(start(result, weight)).view(16, 64, 1, 1)
    assert torch.equal(grid(latent).flatten(1), result.dense())
    with torch.no_grad():
        for parameter in grid.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
        latent += 0.1 * torch.randn(latent.shape, generator=generator)
    assert torch.equal(grid(latent).flatten(1), grid.result(latent).dense())


def test_masked_weights_stay_zero(tmp_path: Path) -> None:
    checkpoint = reader(tmp_path / "teacher")
    before = quantized(checkpoint, "palette 2")
    name = next(iter(before))
    mask = torch.arange(before[name].codes.numel()).view(before[name].codes.shape) % 2 == 0
    object.__setattr__(before[name], "mask", mask)
    source = ProceduralQuestions(checkpoint, seed=1, batch=1, workers=0)
    after, _ = train(checkpoint, before, config(steps=2), workspace(tmp_path), source)
    assert torch.equal(after[name].mask, mask)
    assert not after[name].dense()[~mask].any()


def test_a_result_that_fits_no_weight_is_named(tmp_path: Path) -> None:
    checkpoint = reader(tmp_path / "teacher")
    results = quantized(checkpoint, "affine 2")
    name, result = results.popitem()
    with pytest.raises(StageError, match="no weight 'text"):
        train(checkpoint, {"text.layers.9.mlp.up_proj.weight": result}, CONFIG, workspace(tmp_path))
    with pytest.raises(StageError, match="another size"):
        train(checkpoint, {name: FORMATS["affine 2"](torch.ones(3, 32))}, CONFIG, workspace(tmp_path))


def test_a_rate_that_diverges_is_an_error(tmp_path: Path) -> None:
    checkpoint = reader(tmp_path / "teacher")
    source = ProceduralQuestions(checkpoint, seed=1, batch=1, workers=0)
    with pytest.raises(StageError, match="the loss is") as error:
        train(checkpoint, {}, config(steps=9, learning_rate=1e30, float_rate=1.0), workspace(tmp_path), source)
    assert "learning rate" in error.value.hint


def run(folder: Path) -> dict[str, torch.Tensor]:
    """What a process of its own does, and is killed at: every part of the trained weights."""
    checkpoint = Checkpoint(folder / "teacher")
    source = ProceduralQuestions(checkpoint, seed=1, batch=2, workers=0)
    results, floats = train(checkpoint, quantized(checkpoint, "palette 2"), CONFIG, workspace(folder), source)
    return floats | {
        f"{name}.{index}": part for name, result in results.items() for index, part in enumerate(parts(result))
    }


@pytest.mark.slow
def test_a_run_killed_outright_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        reader(tmp_path / name / "teacher")
    whole = run(tmp_path / "whole")
    state = tmp_path / "killed/scratch" / STATE
    command = [sys.executable, "-c", f"from tests.stages.test_qat import *; run(Path({str(tmp_path / 'killed')!r}))"]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < torch.load(state, weights_only=True)["step"] < CONFIG.steps
    resumed = run(tmp_path / "killed")
    assert all(torch.equal(resumed[name], part) for name, part in whole.items())
