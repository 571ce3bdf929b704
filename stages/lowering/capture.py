"""Capture: one graph a function, by torch.export under FakeTensorMode, so that no weight of a model is ever in memory.

Parameters carry the checkpoint's names (vision.*, projector.*, text.*; a module's own); a lowering asks its weight
source for them.
"""

import inspect
import operator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pipelines.errors import LoweringError
from stages.models.vlm import Decoder, Encoder, ModelConfig


def capture_fixed(config: ModelConfig) -> dict[str, ExportedProgram]:
    """The graphs of fixed shapes: `encoder` of a vision-language model, `main` of a user's module."""
    if config.module:
        return {"main": _capture_module(config)}
    return {"encoder": capture_encoder(config)} if config.vision else {}


def capture_encoder(config: ModelConfig) -> ExportedProgram:
    """The graph image (1, 3, S, S) float32 -> features (1, T, hidden_size)."""
    assert config.vision is not None
    size = config.vision.image_size
    with FakeTensorMode():
        return _export(Encoder(config.build()), (torch.empty(1, 3, size, size),))


def capture_decoder(config: ModelConfig, tokens: int | None, context: int, *, head: bool = True) -> ExportedProgram:
    """The graph (input_ids (1, N) int32, image_features (1, N, D), position (1,) int32, caches) -> (logits, caches).

    tokens: N, fixed in the graph, or None for any number; context: rows of the caches. A text model has no
    image_features. head: False leaves out the output head; the result is then the hidden states (1, N, D).
    """
    text = config.text
    assert text is not None
    varying = {1: Dim("tokens", min=1, max=context)} if tokens is None else None
    features = varying if config.vision else None
    dynamic_shapes = (varying, features, None, [None] * (2 * text.num_hidden_layers)) if varying else None
    tokens = tokens or min(7, context)  # torch.export takes a size of 1 for a constant: any other does as example
    with FakeTensorMode(shape_env=ShapeEnv()):
        cache = (1, text.num_key_value_heads, context, text.head_dim)
        arguments = (
            torch.zeros(1, tokens, dtype=torch.int32),
            torch.empty(1, tokens, text.hidden_size) if config.vision else None,
            torch.zeros(1, dtype=torch.int32),
            [torch.empty(cache) for _ in range(2 * text.num_hidden_layers)],
        )
        return _export(Decoder(config.build(), head), arguments, dynamic_shapes)


def _capture_module(config: ModelConfig) -> ExportedProgram:
    assert config.module is not None
    module, model = config.module, config.build()
    order = [name for name in inspect.signature(model.forward).parameters if name in module.inputs]
    specs = [module.inputs[name] for name in order] if len(order) == len(module.inputs) else module.inputs.values()
    inputs = [torch.zeros(tuple(spec["shape"]), dtype=getattr(torch, spec["dtype"])) for spec in specs]
    program = _export(model, tuple(inputs))  # with real tensors: the module may have made constants
    _without_overwriting(program)
    names = list(program.graph_signature.user_inputs)
    if sorted(map(str, names)) != sorted(module.inputs):
        raise LoweringError(
            f"{module.target} takes {', '.join(map(str, names))}; model.inputs names {', '.join(module.inputs)}",
            hint="Name forward's parameters.",
        )
    found = [node.meta["val"] for node in program.graph.output_node().args[0]]
    if len(found) != len(module.outputs):
        raise LoweringError(
            f"{module.target} returns {len(found)} tensors; model.outputs names {len(module.outputs)}",
            hint=f"Name each of them; their shapes are {', '.join(str(tuple(value.shape)) for value in found)}.",
        )
    return program


def _without_overwriting(program: ExportedProgram) -> None:
    """Operators that overwrite their input become those that do not, where no view sees the difference: later readers
    of the input already read the result."""
    for node in program.graph.nodes:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable or not node.args:
            continue
        if _is_its_own(node.args[0]):
            plain = getattr(torch.ops.aten, target.overloadpacket.__name__.removesuffix("_"), None)
            node.target = getattr(plain, target._overloadname, target)
    program.graph_module.recompile()


def _is_its_own(node: Node, view: Node | None = None) -> bool:
    """Whether nothing else reads the memory of node's result; `view`: what node is looked at through."""
    others = [user for user in node.users if user is not view]
    if node.op != "call_function" or (others if view else any(map(_is_view, others))):
        return False
    return _is_its_own(node.args[0], node) if _is_view(node) else True  # type: ignore[arg-type]


def _is_view(node: Node) -> bool:
    if node.target is operator.getitem:
        return True
    returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else ()
    return any(result.alias_info is not None and not result.alias_info.is_write for result in returns)


def _export(module: nn.Module, arguments: tuple[Any, ...], dynamic_shapes: Any = None) -> ExportedProgram:
    return torch.export.export(module.eval(), arguments, strict=False, dynamic_shapes=dynamic_shapes)
