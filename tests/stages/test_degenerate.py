"""Inputs at the edge, for every method: the result is right, or the error says what is wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipelines.errors import StageError, TapeoutError
from pipelines.workspace import Workspace
from stages.artifacts import Calibration, Checkpoint
from stages.calibrate import calibrate
from stages.quantize import quantize
from stages.quantizers.choices import Choice, Role
from stages.quantizers.layers import Layer
from stages.quantizers.methods import quantized
from stages.quantizers.statistics import StatisticsReader
from stages.schema import Format, LayerOverride, Method, QuantizeConfig
from stages.tensorfile import TensorReader, TensorWriter
from tests.conf import group
from tests.toy import toy_checkpoint

torch.set_num_threads(1)
EVERY: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn": ("int4", {"method": "rtn"}),
    "rtn, searched": ("int4", {"method": "rtn", "scale_search": True}),
    "gptq": ("int4", {}),
    "gptq, 2 bits": ("int4", {"bits": 2, "symmetric": True}),
    "gptq palette": ("palette4", {}),
    "k-means palette": ("palette4", {"method": "kmeans", "importance": "second_moment"}),
    "vector palette": ("palette4", {"method": "kmeans", "importance": "second_moment", "vector": 2}),
    "channel scales": ("palette4", {"channel_scale": True}),
    "hqq": ("hqq", {}),
    "awq": ("awq", {}),
    "nncf": ("nncf", {}),
    "nncf, symmetric": ("nncf", {"symmetric": True}),
    "2:4": ("sparse24", {}),
    "sparse float": ("sparse24", {"bits": 0, "sparsity_pattern": None, "sparsity": 0.5}),
}
CALIBRATED = [name for name in EVERY if name not in ("rtn", "hqq") and not name.startswith("nncf")]
ZEROS, OUTLIER = "text.layers.0.mlp.up_proj.weight", "text.layers.1.self_attn.o_proj.weight"


def workspace(path: Path) -> Workspace:
    for name in ("out", "scratch"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return Workspace(path / "out", path / "scratch")


def configured(kind: str, *weights: str, **changes: Any) -> QuantizeConfig:
    """For these weights as EVERY says; the others stay float16, which is quick."""
    name, own = EVERY[kind]
    config = group("quantize", name, **{**own, **changes})
    overrides = [LayerOverride(weight, bits=config.bits) for weight in weights]
    return replace(config, overrides=[LayerOverride("*", bits=0), *overrides])


def changed(path: Path, name: str, places: Any, value: float) -> Checkpoint:
    checkpoint = toy_checkpoint(path)
    state = load_file(checkpoint.weights)
    state[name][places] = value
    save_file(state, checkpoint.weights)
    return checkpoint


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Calibration]:
    """A matrix of which half of the rows are zero, and one with a weight of 10,000."""
    base = tmp_path_factory.mktemp("odd")
    checkpoint = changed(base / "checkpoint", ZEROS, slice(0, 48), 0.0)
    state = load_file(checkpoint.weights)
    state[OUTLIER][5, 7] = 1e4
    save_file(state, checkpoint.weights)
    config = group("calibrate", "default", samples=3, batch=3)
    return checkpoint, calibrate(checkpoint, config, workspace(base / "calibration"))


@pytest.mark.parametrize("kind", EVERY)
def test_zero_rows_stay_zero_and_an_outlier_stays_large(
    kind: str, odd: tuple[Checkpoint, Calibration], tmp_path: Path
) -> None:
    checkpoint, calibration = odd
    store = quantize(checkpoint, configured(kind, ZEROS, OUTLIER), workspace(tmp_path), calibration).store()
    weights = load_file(checkpoint.weights)
    zeros, spiked = store.dense(ZEROS), store.dense(OUTLIER)
    largest = float(weights[ZEROS].float().abs().max())
    assert np.abs(zeros[:48]).max() <= (0.1 * largest if "palette" in kind or "scales" in kind else 0)
    assert np.isfinite(spiked).all() and spiked[5, 7] == pytest.approx(1e4, rel=1e-3)
    others = np.delete(spiked, 5, axis=0) if "palette" not in kind else np.zeros(1)  # rows share a palette
    assert np.abs(others).max() < 1


@pytest.mark.parametrize("kind", EVERY)
def test_a_group_larger_than_the_row(kind: str, odd: tuple[Checkpoint, Calibration], tmp_path: Path) -> None:
    """Affine weights get one scale a row, a palette serves the whole tensor."""
    checkpoint, calibration = odd
    config = configured(kind, ZEROS, group_size=100_000)
    form = quantize(checkpoint, config, workspace(tmp_path), calibration).store().format(ZEROS)
    assert form.bits == config.bits
    assert form.format == "float" or form.group_size == (64 if form.format == "affine" else 0)


def statistics(path: Path, second: torch.Tensor) -> StatisticsReader:
    with TensorWriter(path) as writer:
        triangle = second[torch.triu_indices(len(second), len(second)).unbind()]
        writer.add("weight.second_moment", triangle.numpy())
    return StatisticsReader(path)


@pytest.mark.parametrize("kind", [kind for kind in EVERY if kind not in ("2:4", "awq")])
def test_a_single_column(kind: str, tmp_path: Path) -> None:
    name, changes = EVERY[kind]
    config = group("quantize", name, **{"importance": "uniform", **changes})
    weight = torch.linspace(-1, 1, 8).unsqueeze(1)
    layer = Layer(Role.language, (8, 1), nn.Linear(1, 8))
    size = 8 if config.format is Format.palette else 1
    choice = Choice(
        Method(config.method),
        Format(config.format),
        config.bits,
        size,
        config.symmetric,
        config.channel_scale,
        config.vector,
        config.sparsity,
    )
    found = quantized("weight", weight, layer, choice, statistics(tmp_path / "s", torch.ones(1, 1)), config).dense()
    if choice.sparse:
        assert int((found == 0).sum()) == 4
    else:
        assert float((found - weight).abs().max()) <= 0.15


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", EVERY)
def test_weights_that_are_not_finite_are_named(
    kind: str, value: float, odd: tuple[Checkpoint, Calibration], tmp_path: Path
) -> None:
    broken = changed(tmp_path / "checkpoint", ZEROS, (3, 4), value)
    with pytest.raises(TapeoutError, match=f"{ZEROS}' holds NaN or infinite values"):
        quantize(broken, configured(kind, ZEROS), workspace(tmp_path), odd[1])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture(scope="module")
def unsound(odd: tuple[Checkpoint, Calibration], tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """A calibration of which one layer's statistics hold a NaN."""
    calibration = Calibration(tmp_path_factory.mktemp("unsound"))
    reader = TensorReader(odd[1].statistics)
    with TensorWriter(calibration.statistics) as writer:
        for name in reader.entries:
            array = np.array(reader.array(name))
            if name.startswith(ZEROS):
                array.reshape(-1)[0] = np.nan
            writer.add(name, array)
    return calibration


@pytest.mark.parametrize("kind", CALIBRATED)
def test_a_calibration_that_holds_nan_is_refused(
    kind: str, odd: tuple[Checkpoint, Calibration], unsound: Calibration, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=f"of {ZEROS} holds NaN"):
        quantize(odd[0], configured(kind, ZEROS), workspace(tmp_path), unsound)


@pytest.mark.parametrize("kind", CALIBRATED)
def test_no_calibration_at_all_is_said(kind: str, odd: tuple[Checkpoint, Calibration], tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"there is no calibration\n.*Run calibrate"):
        quantize(odd[0], configured(kind, ZEROS), workspace(tmp_path))


def test_an_empty_calibration_set(odd: tuple[Checkpoint, Calibration], tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"calibrate\.samples"):
        calibrate(odd[0], group("calibrate", "default", samples=0), workspace(tmp_path))
