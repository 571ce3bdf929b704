"""The table of emitters: what it cannot lower it names, and anyone can add to it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from pipelines.errors import LoweringError
from stages.lowering.graph import TABLES, operator_name, register, source_line
from stages.lowering.onnx import lower_program
from stages.quantizers.store import QuantizedStore, StoreWriter


class Folded(nn.Module):
    """A module that nobody here planned for."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sub(torch.celu(x * self.scale), x, alpha=2) + 1.0


def lower(path: Path) -> onnxruntime.InferenceSession:
    program = torch.export.export(Folded(), (torch.zeros(2, 4),), strict=False)
    with StoreWriter(path) as store:
        store.add_float("scale", np.array([1, 2, 3, 4], np.float16))
    lower_program(program, QuantizedStore.open(path), path / "folded.onnx", outputs=["y"], accuracy_level=1)
    return onnxruntime.InferenceSession(path / "folded.onnx")


@pytest.fixture
def onnx_table() -> Iterator[dict]:
    """The ONNX table, put back afterwards."""
    emitters = TABLES["onnx"].emitters
    before = dict(emitters)
    yield emitters
    emitters.clear()
    emitters.update(before)


def test_an_unknown_operator_is_named_with_its_line_and_the_way_out(tmp_path):
    with pytest.raises(LoweringError) as error:
        lower(tmp_path)
    assert "'aten.celu.default'" in error.value.message and "onnx" in error.value.message
    assert "tests/stages/test_graph.py:" in error.value.message
    assert "torch.celu(x * self.scale)" in error.value.message
    assert str(Path(__file__).parents[2]) not in str(error.value)
    assert '@stages.lowering.graph.register("onnx", "aten.celu.default")' in error.value.hint
    assert not list(tmp_path.glob("folded*"))


def test_a_weight_that_does_not_fit_leaves_no_file(tmp_path, onnx_table):
    program = torch.export.export(Folded(), (torch.zeros(2, 4),), strict=False)
    onnx_table["aten.celu.default"] = lambda context, node, x: x
    with StoreWriter(tmp_path) as store:
        store.add_palette("scale", (4, 1), 4, np.zeros((4, 1), np.uint8), np.zeros((1, 16), np.float16))
    with pytest.raises(LoweringError, match="palette"):
        lower_program(program, QuantizedStore.open(tmp_path), tmp_path / "folded.onnx", outputs=["y"], accuracy_level=1)
    assert not list(tmp_path.glob("folded*"))


def test_a_lowering_registered_from_outside_is_used(tmp_path, onnx_table):
    @register("onnx", "aten.celu.default")
    def celu(context, node, x):
        return context.op("Celu", x, alpha=1.0)

    session = lower(tmp_path)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    (found,) = session.run(["y"], {"x": x})
    expected = torch.celu(torch.from_numpy(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])) - 2 * torch.from_numpy(x) + 1.0
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_one_from_outside_replaces_ours_and_ours_never_one_from_outside(onnx_table):
    def mine(context, node, x):
        return x

    ours = onnx_table["aten.gelu.default"]
    register("onnx", "aten.gelu.default")(mine)
    register("onnx", "aten.gelu.default")(ours)
    assert onnx_table["aten.gelu.default"] is mine


def test_an_unknown_target_is_refused():
    with pytest.raises(LoweringError, match="'onxx'") as error:
        register("onxx", "aten.celu.default")
    assert "did you mean 'onnx'?" in error.value.hint


def test_lines_are_of_the_model_not_of_torch():
    program = torch.export.export(nn.Sequential(nn.Linear(4, 4)), (torch.zeros(2, 4),), strict=False)
    node = next(node for node in program.graph.nodes if node.op == "call_function")
    assert operator_name(node) == "aten.linear.default"
    assert source_line(node) == f"node '{node.name}' of the captured graph"
