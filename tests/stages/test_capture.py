"""Capture of a user's module: what overwrites a tensor is captured so that every lowering computes what torch does."""

from collections.abc import Callable

import pytest
import torch

from stages.lowering.capture import capture_fixed
from stages.lowering.graph import operator_name
from stages.lowering.interpret import run_graph
from stages.models.vlm import ModelConfig, ModuleConfig


def after(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y.add_(1)
    return y * x


def before_and_after(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    earlier = y + 1
    y.masked_fill_(y > 0, -1.0)
    return earlier + y


def by_two_names(x: torch.Tensor) -> torch.Tensor:
    y = z = x * 2
    z += 1
    y *= 3
    return y + z


def through_a_view(x: torch.Tensor) -> torch.Tensor:
    y = (x * 2).t()
    return y.relu_()


def under_a_view(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    flat = y.view(-1)
    y.relu_()
    return flat.sum() + y


def beside_a_part(x: torch.Tensor) -> torch.Tensor:
    whole = x * 2
    left, _ = whole.chunk(2, -1)
    left.mul_(2)
    return whole


CASES: dict[Callable[[torch.Tensor], torch.Tensor], bool] = {  # whether it can be computed without overwriting
    after: True,
    before_and_after: True,
    by_two_names: True,
    through_a_view: True,
    under_a_view: False,
    beside_a_part: False,
}


class Overwriting(torch.nn.Module):
    def __init__(self, case: str):
        super().__init__()
        self.function = next(function for function in CASES if function.__name__ == case)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize(("function", "plain"), CASES.items())
def test_what_is_overwritten_is_computed_as_torch_does(function: Callable, plain: bool) -> None:
    inputs = {"x": {"shape": [2, 6], "dtype": "float32"}}
    module = ModuleConfig(f"{__name__}.Overwriting", {"case": function.__name__}, inputs, ["y"])
    program = capture_fixed(ModelConfig(None, None, None, module))["main"]
    operators = [operator_name(node).partition(".")[2] for node in program.graph.nodes if node.op == "call_function"]
    assert any(name.partition(".")[0].endswith("_") for name in operators) != plain
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    (found,) = run_graph(program, lambda name: torch.empty(0), {"x": x.clone()})
    assert torch.equal(found, function(x.clone()))
