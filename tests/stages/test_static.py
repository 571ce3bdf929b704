"""Static INT8 of the tower: ranges by nncf.quantize, the same arithmetic in torch and ONNX Runtime, else a refusal."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipelines.errors import ConfigError
from pipelines.workspace import Workspace
from stages.artifacts import QuantizedModel
from stages.calibrate import calibrate
from stages.checks import weight_formats
from stages.lowering.capture import capture_fixed
from stages.lowering.onnx import lower_program
from stages.quantize import quantize
from tests.conf import group
from tests.toy import toy_checkpoint

torch.set_num_threads(1)


def workspace(path: Path) -> Workspace:
    for name in ("out", "scratch"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return Workspace(path / "out", path / "scratch")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    base = tmp_path_factory.mktemp("static")
    checkpoint = toy_checkpoint(base / "checkpoint")
    config = group("calibrate", "default", samples=8, batch=4)
    calibration = calibrate(checkpoint, config, workspace(base / "calibration"))
    return quantize(checkpoint, group("quantize", "nncf-static"), workspace(base / "quantize"), calibration)


def test_every_product_but_the_gates_has_a_range(model: QuantizedModel) -> None:
    """NNCF leaves squeeze-and-excitation alone."""
    ranges, store = model.activations(), model.store()
    products = {
        name
        for name in store.names()
        if name.startswith(("vision.", "projector.")) and store.format(name).format == "affine"
    }
    assert set(ranges) == {name for name in products if ".squeeze." not in name and ".excite." not in name}
    for grid in ranges.values():
        assert grid["bits"] == 8 and grid["scale"] > 0 and 0 <= grid["zero_point"] <= 255
    for name in ranges:
        assert (store.format(name).bits, store.format(name).groups) == (8, 1)


@torch.no_grad()
def test_onnx_runtime_computes_what_torch_does(model: QuantizedModel, tmp_path: Path) -> None:
    """To the bit without its own rewriting, which moves roundings; and near the float model."""
    ((_, program),) = capture_fixed(model.config()).items()
    path = tmp_path / "encoder.onnx"
    lower_program(program, model.store(), path, outputs=["features"], accuracy_level=4)
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["QuantizeLinear"] > 0 and kinds["DequantizeLinear"] == kinds["QuantizeLinear"] + len(
        model.activations()
    )
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = model.model().encode(pixels).numpy()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    spread = float(expected.std())
    assert np.abs(found - expected).max() < 0.05 * spread
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    assert np.abs(found - expected).mean() < 0.1 * spread


def test_core_ml_refuses_it_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"rounds no activations.*\n.*quantize\.activations=0"):
        weight_formats(group("quantize", "nncf-static"), group("device", "iphone-15-pro"))
    weight_formats(group("quantize", "nncf-static"), group("device", "pixel-8"))
