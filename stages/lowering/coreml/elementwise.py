"""Emitters of what is computed number by number, and of reductions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from torch.fx import Node

from pipelines.errors import LoweringError
from stages.lowering.coreml.builder import FunctionBuilder
from stages.lowering.graph import operator_name, register, source_line

LEAST_SCALE = 2.0**-4
Unary = Callable[[FunctionBuilder, Var], Var]


def unsupported(node: Node, what: str, expected: str) -> LoweringError:
    """The error for arguments of an operator that have no lowering."""
    return LoweringError(
        f"operator '{operator_name(node)}' with {what} has no lowering for coreml; it comes from {source_line(node)}",
        hint=f"Expected {expected}.",
    )


def _softplus(context: FunctionBuilder, x: Var) -> Var:
    """log(1 + exp(x)) as max(x, 0) + log(1 + exp(-|x|)), which cannot overflow."""
    small = mb.exp(x=mb.mul(x=mb.abs(x=x), y=context.number(-1)))
    return mb.add(x=mb.relu(x=x), y=mb.log(x=mb.add(x=small, y=context.number(1)), epsilon=context.number(0)))


def _hard_sigmoid(context: FunctionBuilder, x: Var) -> Var:
    sixth = mb.real_div(x=mb.add(x=x, y=context.number(3)), y=context.number(6))
    return mb.clip(x=sixth, alpha=context.number(0), beta=context.number(1))


_UNARY: dict[str, Unary] = {
    "relu": lambda context, x: mb.relu(x=x),
    "silu": lambda context, x: mb.silu(x=x),
    "sigmoid": lambda context, x: mb.sigmoid(x=x),
    "tanh": lambda context, x: mb.tanh(x=x),
    "exp": lambda context, x: mb.exp(x=x),
    "log": lambda context, x: mb.log(x=x, epsilon=context.number(0)),
    "erf": lambda context, x: mb.erf(x=x),
    "sin": lambda context, x: mb.sin(x=x),
    "cos": lambda context, x: mb.cos(x=x),
    "abs": lambda context, x: mb.abs(x=x),
    "sign": lambda context, x: mb.sign(x=x),
    "floor": lambda context, x: mb.floor(x=x),
    "ceil": lambda context, x: mb.ceil(x=x),
    "round": lambda context, x: mb.round(x=x),
    "square": lambda context, x: mb.square(x=x),
    "sqrt": lambda context, x: mb.sqrt(x=x),
    "rsqrt": lambda context, x: mb.rsqrt(x=x, epsilon=context.number(0)),
    "reciprocal": lambda context, x: mb.real_div(x=context.number(1), y=x),
    "neg": lambda context, x: mb.mul(x=x, y=np.int32(-1) if context.is_integer(x) else context.number(-1)),
    "relu6": lambda context, x: mb.relu6(x=x),
    "softplus": _softplus,
    "hardsigmoid": _hard_sigmoid,
    "hardswish": lambda context, x: mb.mul(x=x, y=_hard_sigmoid(context, x)),
    "mish": lambda context, x: mb.mul(x=x, y=mb.tanh(x=_softplus(context, x))),
    "log_sigmoid": lambda context, x: mb.mul(
        x=_softplus(context, mb.mul(x=x, y=context.number(-1))), y=context.number(-1)
    ),
    "logical_not": lambda context, x: mb.logical_not(x=context.as_bool(x)),
    "bitwise_not": lambda context, x: mb.logical_not(x=context.as_bool(x)),
}


def _unary(emit: Unary, name: str) -> Callable[..., Var]:
    def emitter(context: FunctionBuilder, node: Node, x: Any, *options: Any, **keywords: Any) -> Var:
        given = [*options, *keywords.values()]
        if name == "softplus" and given not in ([], [1], [1, 20]):
            raise unsupported(node, f"arguments {given}", "beta=1 and threshold=20")
        if name == "round" and given:
            raise unsupported(node, f"decimals={given[0]}", "no decimals")
        return emit(context, context.value(x))

    return emitter


for _name, _emit in _UNARY.items():
    register("coreml", f"aten.{_name}.default")(_unary(_emit, _name))


@register("coreml", "aten.gelu.default")
def gelu(context: FunctionBuilder, node: Node, x: Any, approximate: str = "none") -> Var:
    return mb.gelu(x=context.value(x), mode="EXACT" if approximate == "none" else "TANH_APPROXIMATION")


@register("coreml", "aten.leaky_relu.default")
def leaky_relu(context: FunctionBuilder, node: Node, x: Any, slope: float = 0.01) -> Var:
    return mb.leaky_relu(x=context.value(x), alpha=context.number(slope))


@register("coreml", "aten.elu.default")
def elu(
    context: FunctionBuilder, node: Node, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> Var:
    if (scale, input_scale) != (1, 1):
        raise unsupported(node, f"scale={scale}, input_scale={input_scale}", "1 for both")
    return mb.elu(x=context.value(x), alpha=context.number(alpha))


@register("coreml", "aten.prelu.default")
def prelu(context: FunctionBuilder, node: Node, x: Any, slope: Any) -> Var:
    x = context.value(x)
    slopes = context.dense(slope)
    shape = [1, -1] + [1] * (x.rank - 2) if slopes.size > 1 else [1] * x.rank
    below = mb.minimum(x=x, y=context.number(0))
    return mb.add(x=mb.relu(x=x), y=mb.mul(x=below, y=context.array(slopes.reshape(shape))))


@register("coreml", "aten.clamp.default", "aten.hardtanh.default")
def clamp(context: FunctionBuilder, node: Node, x: Any, low: float | None = None, high: float | None = None) -> Var:
    if "hardtanh" in operator_name(node):
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    x = context.value(x)
    integer = context.is_integer(x)
    if low is not None:
        x = mb.maximum(x=x, y=context.value(low, integer))
    return x if high is None else mb.minimum(x=x, y=context.value(high, integer))


@register("coreml", "aten.clamp_min.default")
def clamp_min(context: FunctionBuilder, node: Node, x: Any, low: float) -> Var:
    return clamp(context, node, x, low)


@register("coreml", "aten.clamp_max.default")
def clamp_max(context: FunctionBuilder, node: Node, x: Any, high: float) -> Var:
    return clamp(context, node, x, None, high)


def operands(context: FunctionBuilder, node: Node, *arguments: Any) -> list[Any]:
    """The arguments as Vars or numbers of one dtype, as torch promotes them."""
    tensors = [source.meta["val"] for source in node.all_input_nodes if isinstance(source.meta["val"], torch.Tensor)]
    numbers = [argument for argument in arguments if isinstance(argument, bool | int | float)]
    floating = any(tensor.dtype.is_floating_point for tensor in tensors) or any(isinstance(n, float) for n in numbers)
    return [context.operand(argument, floating) for argument in arguments]


def _binary(emit: Callable[..., Var]) -> Callable[..., Var]:
    def emitter(context: FunctionBuilder, node: Node, x: Any, y: Any) -> Var:
        left, right = operands(context, node, x, y)
        return emit(x=left, y=right)

    return emitter


_BINARY = {
    "mul": mb.mul,
    "pow": mb.pow,
    "maximum": mb.maximum,
    "minimum": mb.minimum,
    "eq": mb.equal,
    "ne": mb.not_equal,
    "gt": mb.greater,
    "ge": mb.greater_equal,
    "lt": mb.less,
    "le": mb.less_equal,
    "remainder": mb.mod,
    "floor_divide": mb.floor_div,
}
for _name, _operation in _BINARY.items():
    register("coreml", f"aten.{_name}.Tensor", f"aten.{_name}.Scalar", f"aten.{_name}.default")(_binary(_operation))
register("coreml", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")(_binary(mb.pow))


@register("coreml", "aten.pow.Tensor_Scalar")
def power(context: FunctionBuilder, node: Node, x: Any, exponent: float) -> Var:
    x = context.value(x)
    known: dict[float, Unary] = {2: _UNARY["square"], 0.5: _UNARY["sqrt"], -0.5: _UNARY["rsqrt"], 1: lambda _, x: x}
    if exponent in known:
        return known[exponent](context, x)
    if exponent == 3:
        return mb.mul(x=mb.square(x=x), y=x)
    return mb.pow(x=x, y=context.number(exponent))


@register("coreml", "aten.add.Tensor", "aten.add.Scalar")
def add(context: FunctionBuilder, node: Node, x: Any, y: Any, alpha: float = 1) -> Var:
    return _sum(context, node, mb.add, x, y, alpha)


@register("coreml", "aten.sub.Tensor", "aten.sub.Scalar")
def sub(context: FunctionBuilder, node: Node, x: Any, y: Any, alpha: float = 1) -> Var:
    return _sum(context, node, mb.sub, x, y, alpha)


@register("coreml", "aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(context: FunctionBuilder, node: Node, x: Any, y: Any, alpha: float = 1) -> Var:
    left, right = operands(context, node, x, y)
    scaled = left if alpha == 1 else mb.mul(x=left, y=context.operand(alpha, not context.is_integer(left)))
    return mb.sub(x=right, y=scaled)


def _sum(context: FunctionBuilder, node: Node, emit: Callable[..., Var], x: Any, y: Any, alpha: float) -> Var:
    left, right = operands(context, node, x, y)
    if alpha != 1:
        right = mb.mul(x=right, y=context.operand(alpha, not context.is_integer(right)))
    return emit(x=left, y=right)


@register("coreml", "aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor")
def div(context: FunctionBuilder, node: Node, x: Any, y: Any) -> Var:
    return mb.real_div(x=context.operand(x, True), y=context.operand(y, True))


@register("coreml", "aten.div.Tensor_mode", "aten.div.Scalar_mode")
def div_mode(context: FunctionBuilder, node: Node, x: Any, y: Any, rounding_mode: str | None = None) -> Var:
    if rounding_mode is None:
        return div(context, node, x, y)
    if rounding_mode != "floor":
        raise unsupported(node, f"rounding_mode='{rounding_mode}'", "'floor' or None")
    left, right = operands(context, node, x, y)
    return mb.floor_div(x=left, y=right)


_LOGICAL = {"and": mb.logical_and, "or": mb.logical_or, "xor": mb.logical_xor}


def _logical(emit: Callable[..., Var]) -> Callable[..., Var]:
    return lambda context, node, x, y: emit(x=context.as_bool(context.value(x)), y=context.as_bool(context.value(y)))


for _name, _operation in _LOGICAL.items():
    register("coreml", f"aten.logical_{_name}.default", f"aten.bitwise_{_name}.Tensor", f"aten.__{_name}__.Tensor")(
        _logical(_operation)
    )


@register("coreml", "aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(context: FunctionBuilder, node: Node, condition: Any, x: Any, y: Any) -> Var:
    floating = node.meta["val"].dtype.is_floating_point
    chosen = context.as_bool(context.value(condition))
    return mb.select(cond=chosen, a=context.operand(x, floating), b=context.operand(y, floating))


@register("coreml", "aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(context: FunctionBuilder, node: Node, x: Any, mask: Any, value: Any) -> Var:
    return where(context, node, mask, value, x)


def _reduction(emit: Callable[..., Var]) -> Callable[..., Var]:
    def emitter(
        context: FunctionBuilder, node: Node, x: Any, dims: Any = None, keep: bool = False, **options: Any
    ) -> Var:
        x = context.value(x)
        dims = [dims] if isinstance(dims, int) else dims
        return emit(x=x, axes=[dim % x.rank for dim in dims] if dims else list(range(x.rank)), keep_dims=keep)

    return emitter


register("coreml", "aten.sum.dim_IntList", "aten.sum.default")(_reduction(mb.reduce_sum))
register("coreml", "aten.amax.default", "aten.max.default")(_reduction(mb.reduce_max))
register("coreml", "aten.amin.default", "aten.min.default")(_reduction(mb.reduce_min))


@register("coreml", "aten.max.dim", "aten.min.dim")
def extreme(context: FunctionBuilder, node: Node, x: Any, dim: int, keep: bool = False) -> list[Var]:
    x = context.value(x)
    values, places = (
        (mb.reduce_max, mb.reduce_argmax) if "max" in str(node.target) else (mb.reduce_min, mb.reduce_argmin)
    )
    return [values(x=x, axes=[dim], keep_dims=keep), places(x=x, axis=dim, keep_dims=keep)]


@register("coreml", "aten.argmax.default", "aten.argmin.default")
def arg_extreme(context: FunctionBuilder, node: Node, x: Any, dim: int | None = None, keep: bool = False) -> Var:
    x = context.value(x)
    emit = mb.reduce_argmax if "argmax" in str(node.target) else mb.reduce_argmin
    if dim is None:
        x, dim = mb.reshape(x=x, shape=[-1]), 0
        keep = False
    return emit(x=x, axis=dim, keep_dims=keep)


@register("coreml", "aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim")
def vector_norm(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    order: float = 2,
    dims: Sequence[int] | None = None,
    keep: bool = False,
    **options: Any,
) -> Var:
    """sqrt(sum(x^2)), by m = max(max|x|, 1/16) first, so that no square leaves float16."""
    if order != 2:
        raise unsupported(node, f"order {order}", "2, the Euclidean norm")
    x = context.value(x)
    axes = [dims] if isinstance(dims, int) else list(dims) if dims else list(range(x.rank))
    peak = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=axes, keep_dims=True), y=context.number(LEAST_SCALE))
    energy = mb.reduce_sum(x=mb.square(x=mb.real_div(x=x, y=peak)), axes=axes, keep_dims=True)
    norm = mb.mul(x=mb.sqrt(x=energy), y=peak)
    return norm if keep else mb.reshape(x=norm, shape=[int(size) for size in node.meta["val"].shape])


@register("coreml", "aten.var.correction", "aten.var.dim")
def variance(
    context: FunctionBuilder, node: Node, x: Any, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> Var:
    if correction != 0:
        raise unsupported(node, f"correction={correction}", "correction=0")
    x = context.value(x)
    axes = list(dims) if dims else list(range(x.rank))
    centred = mb.sub(x=x, y=mb.reduce_mean(x=x, axes=axes, keep_dims=True))
    return mb.reduce_mean(x=mb.square(x=centred), axes=axes, keep_dims=keepdim)


@register("coreml", "aten.cumsum.default")
def cumsum(context: FunctionBuilder, node: Node, x: Any, dim: int, **options: Any) -> Var:
    x = context.value(x)
    floating = node.meta["val"].dtype.is_floating_point
    return mb.cumsum(x=context.operand(x, floating), axis=dim % x.rank)
