"""Emitters of the general operators: what vision towers and transformers are made of. See decoder.py for the rest.

Everything is computed in float16; a Python number becomes a float16 constant.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from torch.fx import Node

from pipelines.errors import LoweringError
from stages.lowering.coreml.builder import FunctionBuilder
from stages.lowering.graph import Weight, operator_name, register, source_line


def _shape(node: Node) -> list[int]:
    return [int(size) for size in node.meta["val"].shape]


def _unsupported(node: Node, what: str, expected: str) -> LoweringError:
    return LoweringError(
        f"operator '{operator_name(node)}' with {what} has no lowering for coreml; it comes from {source_line(node)}",
        hint=f"Expected {expected}.",
    )


@register("coreml", "aten.linear.default")
def linear(context: FunctionBuilder, node: Node, x: Var, weight: Weight, bias: Weight | None = None) -> Var:
    outputs = weight.shape[0]
    offset = context.weight(bias) if bias is not None else zeros(context, outputs)
    return mb.linear(x=x, weight=context.weight(weight), bias=offset)


def zeros(context: FunctionBuilder, count: int) -> Var:
    """A shared bias of zeros; left out, MIL would store one for each layer."""
    return context.constant(f"zeros_{count}", lambda: np.zeros(count, np.float16))


@register("coreml", "aten.conv2d.default")
def conv2d(
    context: FunctionBuilder,
    node: Node,
    x: Var,
    weight: Weight,
    bias: Weight | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Var:
    rows, columns = padding
    offset = {} if bias is None else {"bias": context.weight(bias)}
    return mb.conv(
        x=x,
        weight=context.weight(weight),
        strides=list(stride),
        pad_type="custom",
        pad=[rows, rows, columns, columns],
        dilations=list(dilation),
        groups=groups,
        **offset,
    )


@register("coreml", "aten.gelu.default")
def gelu(context: FunctionBuilder, node: Node, x: Var, approximate: str = "none") -> Var:
    return mb.gelu(x=x, mode="EXACT" if approximate == "none" else "TANH_APPROXIMATION")


def _unary(emit: Callable[..., Var]) -> Callable[..., Var]:
    return lambda context, node, x: emit(x=x)


for _name, _emit in {"relu": mb.relu, "silu": mb.silu, "sigmoid": mb.sigmoid, "tanh": mb.tanh, "exp": mb.exp}.items():
    register("coreml", f"aten.{_name}.default")(_unary(_emit))


def _binary(emit: Callable[..., Var]) -> Callable[..., Var]:
    return lambda context, node, x, y: emit(x=context.value(x), y=context.value(y))


for _name, _emit in {"add": mb.add, "sub": mb.sub, "mul": mb.mul, "div": mb.real_div}.items():
    register("coreml", f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_binary(_emit))


@register("coreml", "aten.eq.Scalar")
def equal(context: FunctionBuilder, node: Node, x: Var, y: float) -> Var:
    floating = node.all_input_nodes[0].meta["val"].dtype.is_floating_point
    return mb.equal(x=x, y=np.float16(y) if floating else np.int32(y))


@register("coreml", "aten.where.self")
def where(context: FunctionBuilder, node: Node, condition: Var, x: Var, y: Var) -> Var:
    return mb.select(cond=condition, a=context.value(x), b=context.value(y))


@register("coreml", "aten.softmax.int")
def softmax(context: FunctionBuilder, node: Node, x: Var, dim: int, dtype: Any = None) -> Var:
    return mb.softmax(x=x, axis=dim)


@register("coreml", "aten.mean.dim")
def mean(context: FunctionBuilder, node: Node, x: Var, dims: Sequence[int], keepdim: bool = False) -> Var:
    return mb.reduce_mean(x=x, axes=list(dims), keep_dims=keepdim)


@register("coreml", "aten.layer_norm.default")
def layer_norm(
    context: FunctionBuilder,
    node: Node,
    x: Var,
    normalized_shape: Sequence[int],
    weight: Weight | None = None,
    bias: Weight | None = None,
    epsilon: float = 1e-5,
    cudnn_enable: bool = True,
) -> Var:
    affine = {"gamma": weight, "beta": bias}
    operands = {name: context.weight(value) for name, value in affine.items() if value is not None}
    return mb.layer_norm(x=x, axes=list(range(-len(normalized_shape), 0)), epsilon=np.float16(epsilon), **operands)


@register("coreml", "aten.scaled_dot_product_attention.default")
def attention(
    context: FunctionBuilder,
    node: Node,
    query: Var,
    key: Var,
    value: Var,
    mask: Var | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    **options: Any,
) -> Var:
    if causal or dropout or any(option is not None and option is not False for option in options.values()):
        raise _unsupported(node, f"causal={causal}, dropout={dropout}, {options}", "an explicit mask, nothing else")
    masked = {} if mask is None else {"attn_mask": mask}
    return mb.scaled_dot_product_attention(query=query, key=key, value=value, **masked)


@register("coreml", "aten.matmul.default", "aten.bmm.default")
def matmul(context: FunctionBuilder, node: Node, x: Var, y: Var) -> Var:
    return mb.matmul(x=context.value(x), y=context.value(y))


@register("coreml", "aten.view.default", "aten.reshape.default", "aten.flatten.using_ints", "aten.squeeze.dim")
def reshape(context: FunctionBuilder, node: Node, x: Var, *arguments: Any) -> Var:
    return mb.reshape(x=x, shape=_shape(node))


@register("coreml", "aten.unsqueeze.default")
def unsqueeze(context: FunctionBuilder, node: Node, x: Var, dim: int) -> Var:
    return mb.expand_dims(x=x, axes=[dim])


@register("coreml", "aten.permute.default")
def permute(context: FunctionBuilder, node: Node, x: Var, dims: Sequence[int]) -> Var:
    return mb.transpose(x=x, perm=list(dims))


@register("coreml", "aten.transpose.int")
def transpose(context: FunctionBuilder, node: Node, x: Var, first: int, second: int) -> Var:
    order = list(range(x.rank))
    order[first], order[second] = order[second], order[first]
    return mb.transpose(x=x, perm=order)


@register("coreml", "aten.unbind.int")
def unbind(context: FunctionBuilder, node: Node, x: Var, dim: int = 0) -> list[Var]:
    return [mb.squeeze(x=part, axes=[dim]) for part in mb.split(x=x, num_splits=x.shape[dim], axis=dim)]


@register("coreml", "aten.cat.default")
def cat(context: FunctionBuilder, node: Node, parts: Sequence[Var], dim: int = 0) -> Var:
    return mb.concat(values=[context.value(part) for part in parts], axis=dim)


@register("coreml", "aten.contiguous.default", "aten.clone.default", "aten.dropout.default", "aten.alias.default")
def identity(context: FunctionBuilder, node: Node, x: Var, *arguments: Any, **options: Any) -> Var:
    return x


@register("coreml", "aten.embedding.default")
def embedding(context: FunctionBuilder, node: Node, weight: Weight, indices: Var, *options: Any) -> Var:
    return mb.gather(x=context.weight(weight), indices=indices, axis=0, validate_indices=False)


@register("coreml", "aten.to.dtype", "aten._to_copy.default")
def cast(context: FunctionBuilder, node: Node, x: Var, *arguments: Any, **options: Any) -> Var:
    dtype = node.meta["val"].dtype
    if dtype.is_floating_point:
        return mb.cast(x=x, dtype="fp16")
    if dtype in (torch.int32, torch.int64):
        return mb.cast(x=x, dtype="int32")
    raise _unsupported(node, f"dtype {dtype}", "a floating or an integer dtype")
