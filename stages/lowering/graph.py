"""The captured graph, walked once for each target: every operator is looked up in that target's table of emitters.

A target's table is open. From outside this package:

    from stages.lowering.graph import register

    @register("onnx", "aten.hardswish.default")
    def hardswish(context, node, x):
        return context.op("HardSwish", x)

An emitter is called as `emitter(context, node, *arguments, **keywords)`. Arguments arrive resolved: what the emitters
of earlier nodes returned for tensors, `Weight` for what the checkpoint holds, `Constant` for tensors that the model
makes itself, plain Python values for the rest (a symbolic size stays a torch.SymInt). `node.meta["val"]` holds the
result's shape and dtype. An operator with several results returns a sequence. What `context` offers is the target's own
(see lowering/onnx and lowering/coreml).
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from pipelines.errors import LoweringError, nearest

Emitter = Callable[..., Any]
_PROJECT = Path(__file__).resolve().parents[2]
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n\s*(?P<code>[^\n]*)')


@dataclass(frozen=True)
class Weight:
    """A parameter of the model, by its name in the checkpoint; its numbers are asked of the weight source."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that is no part of the checkpoint: a buffer that is not saved, or one that the model's code makes."""

    name: str
    array: NDArray[Any]


@dataclass
class LoweringTable:
    """What one target can emit: operator name ("aten.gelu.default") -> emitter."""

    target: str
    emitters: dict[str, Emitter] = field(default_factory=dict)

    def emitter(self, node: Node) -> Emitter:
        """The emitter of node's operator. Raises LoweringError, naming the operator and its line, where none is."""
        name = operator_name(node)
        if name in self.emitters:
            return self.emitters[name]
        guess = nearest(name, self.emitters)
        raise LoweringError(
            f"operator '{name}' has no lowering for {self.target}; it comes from {source_line(node)}",
            hint=f"{guess + ' ' if guess else ''}Write an emitter and register it with "
            f'@stages.lowering.graph.register("{self.target}", "{name}"), or change that line to use one of: '
            f"{', '.join(sorted(self.emitters))}.",
        )


TABLES = {target: LoweringTable(target) for target in ("coreml", "onnx")}


def register(target: str, *operators: str) -> Callable[[Emitter], Emitter]:
    """Decorator: make an emitter the lowering of these operators for a target, "coreml" or "onnx".

    The last one counts, except that Tapeout's own never replace one from outside, whichever is imported first.
    """
    if target not in TABLES:
        raise LoweringError(
            f"there is no lowering target '{target}'", hint=f"{nearest(target, TABLES)} Targets: {', '.join(TABLES)}."
        )

    def add(emitter: Emitter) -> Emitter:
        emitters, ours = TABLES[target].emitters, emitter.__module__.startswith(__package__ + ".")
        for name in operators:
            emitters[name] = emitters.get(name, emitter) if ours else emitter
        return emitter

    return add


def emit(program: ExportedProgram, target: str, context: Any, inputs: Mapping[str, Any]) -> list[Any]:
    """Run the target's emitters over the program's nodes, in order; return what they gave for the program's outputs.

    inputs: for each user input, by its name in the graph (list items are name_0, name_1, ...), the target's value.
    A context that has a method `call(node, emitter, arguments, keywords)` makes each call itself.
    Raises LoweringError for an operator without a lowering, before anything is emitted.
    """
    table = TABLES[target]
    calls = [node for node in program.graph.nodes if node.op == "call_function" and node.target is not operator.getitem]
    emitters = {node: table.emitter(node) for node in calls}
    values: dict[Node, Any] = {}

    def plainly(node: Node, emitter: Emitter, arguments: Any, keywords: Any) -> Any:
        return emitter(context, node, *arguments, **keywords)

    call: Callable[..., Any] = getattr(context, "call", plainly)

    def resolve(argument: Any) -> Any:
        return torch.fx.map_arg(argument, lambda node: values[node])

    for node in program.graph.nodes:
        if node.op == "placeholder":
            given = placeholder(program, node, inputs)
            values[node] = _integers(given, node, context) if isinstance(given, Weight) else given
        elif node.op == "output":
            return list(resolve(node.args[0]))
        elif node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        else:
            values[node] = call(node, emitters[node], resolve(node.args), resolve(node.kwargs))
    raise AssertionError("a graph without an output")


def user_inputs(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """The graph's inputs in order, name -> a tensor that only has shape and dtype."""
    names = set(program.graph_signature.user_inputs)
    inputs = [node for node in program.graph.nodes if node.name in names and node.meta["val"] is not None]
    return {node.name: node.meta["val"] for node in inputs}


def placeholder(program: ExportedProgram, node: Node, inputs: Mapping[str, Any]) -> Any:
    """What a graph's input node stands for: a Weight, a Constant, or that input. Raises LoweringError for all else."""
    if node.meta["val"] is None:  # an argument that this model does without
        return None
    spec = next(spec for spec in program.graph_signature.input_specs if getattr(spec.arg, "name", None) == node.name)
    target = str(spec.target)
    if spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR) and target in program.constants:
        return Constant(target, program.constants[target].detach().numpy())
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        return Weight(target, tuple(node.meta["val"].shape))
    if spec.kind == InputKind.USER_INPUT and node.name in inputs:
        return inputs[node.name]
    raise LoweringError(
        f"the captured graph takes '{node.name}' ({spec.kind.name.lower()}), which no lowering can supply",
        hint="Make it a parameter, a registered buffer, or an input of the model.",
    )


def _integers(weight: Weight, node: Node, context: Any) -> Weight | Constant:
    """A table of integers in the checkpoint (a saved buffer) as a constant; other weights as they are."""
    kind = node.meta["val"].dtype
    if kind.is_floating_point or not node.users:
        return weight
    numbers = context.store.dense(weight.name).reshape(weight.shape)
    return Constant(weight.name, torch.from_numpy(numbers).to(kind).numpy())


def operator_name(node: Node) -> str:
    """The operator as torch writes it, e.g. "aten.conv2d.default"."""
    return (
        str(node.target)
        if isinstance(node.target, torch._ops.OpOverload)
        else getattr(node.target, "__name__", str(node.target))
    )


def source_line(node: Node) -> str:
    """The innermost line of the model that made node, as "path:line (code)"; the path is never absolute."""
    torch_home = str(Path(torch.__file__).parent)
    for frame in reversed(list(_FRAME.finditer(node.meta.get("stack_trace") or ""))):
        if not frame["file"].startswith(torch_home):
            return f"{_relative(frame['file'])}:{frame['line']} ({frame['code'].strip()})"
    return f"node '{node.name}' of the captured graph"


def layer_name(node: Node) -> str:
    """The innermost module that made node, as "text.layers.1.mlp.up_proj"; "" for the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _relative(file: str) -> str:
    path = Path(file)
    for root in (_PROJECT, Path.cwd()):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return path.name
