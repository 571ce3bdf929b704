"""Runs a captured graph in torch, in float32: what every runtime is held against, and what values it reaches.

Weights are asked for by name when an operator needs them, and forgotten behind it, so that a model of any size runs in
the memory of its largest layer.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from stages.lowering.graph import Constant, Weight, placeholder

Fetch = Callable[[str], torch.Tensor]  # a weight in float32, by its name in the checkpoint


def run_graph(
    program: ExportedProgram,
    fetch: Fetch,
    inputs: Mapping[str, torch.Tensor],
    observe: Callable[[Node, torch.Tensor], None] | None = None,
) -> list[torch.Tensor]:
    """The graph's outputs, in order. inputs: by their names in the graph (items of lists are name_0, name_1, ...).

    observe: called with each operator and its result; with each of its results, where there are several.
    """
    last = _last_uses(program)
    values: dict[Node, Any] = {}

    def resolve(argument: Any) -> Any:
        return torch.fx.map_arg(argument, lambda node: _tensor(values[node], fetch))

    with torch.inference_mode():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                given = placeholder(program, node, inputs)
                whole = isinstance(given, Weight) and node.users and not node.meta["val"].is_floating_point()
                values[node] = _tensor(given, fetch).to(node.meta["val"].dtype) if whole else given
            elif node.op == "output":
                return list(resolve(node.args[0]))
            elif node.target is operator.getitem:
                values[node] = values[node.args[0]][node.args[1]]
            else:
                values[node] = node.target(*resolve(node.args), **resolve(node.kwargs))
                if observe:
                    _report(node, values[node], observe)
            for used in last.get(node, ()):
                del values[used]
    raise AssertionError("a graph without an output")


def _last_uses(program: ExportedProgram) -> dict[Node, list[Node]]:
    """For each node, those whose value nobody needs behind it; what the output needs stays."""
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    found: dict[Node, list[Node]] = {}
    for node in program.graph.nodes:
        if not any(user.op == "output" for user in node.users):
            found.setdefault(max([*node.users, node], key=order.__getitem__), []).append(node)
    return found


def _tensor(value: Any, fetch: Fetch) -> Any:
    if isinstance(value, Weight):
        return fetch(value.name).reshape(value.shape)
    return torch.from_numpy(value.array) if isinstance(value, Constant) else value


def _report(node: Node, value: Any, observe: Callable[[Node, torch.Tensor], None]) -> None:
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, torch.Tensor):
            observe(node, part)
