"""Emitters of means and of the norms made of them, safe in float16 whatever the size of the values."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from torch.fx import Node

from stages.lowering.coreml.builder import FunctionBuilder
from stages.lowering.coreml.elementwise import unsupported
from stages.lowering.coreml.stored import FLOAT16_MAX
from stages.lowering.graph import register

LEAST_SCALE = 2.0**-4
SAFE_SQUARE = 128.0  # above it, the square of a value, or a sum of a few, leaves float16


def average(context: FunctionBuilder, x: Var, axes: list[int], keep: bool) -> Var:
    """The mean, without a sum that leaves float16 where the values' size says that it would."""
    count = math.prod(int(x.shape[axis]) for axis in axes)
    peak = context.peaks.get(x, 0.0)
    if context.dtype != "float16" or peak * count <= FLOAT16_MAX:
        return mb.reduce_mean(x=x, axes=axes, keep_dims=keep)
    factor = 2.0 ** math.ceil(math.log2(count))
    small = mb.reduce_mean(x=mb.mul(x=x, y=np.float16(1 / factor)), axes=axes, keep_dims=keep)
    return mb.mul(x=small, y=np.float16(factor))


@register("coreml", "aten.mean.dim", "aten.mean.default")
def mean(
    context: FunctionBuilder, node: Node, x: Any, dims: Sequence[int] | None = None, keep: bool = False, **options: Any
) -> Var:
    x = context.value(x)
    return average(context, x, [dim % x.rank for dim in dims] if dims else list(range(x.rank)), keep)


@register("coreml", "aten.layer_norm.default")
def layer_norm(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    epsilon: float = 1e-5,
    cudnn_enable: bool = True,
) -> Var:
    """Core ML's own, but where the values' size says that their squares may leave float16."""
    x = context.value(x)
    axes = list(range(-len(normalized_shape), 0))
    if context.dtype == "float16" and context.peaks.get(x, 0.0) > SAFE_SQUARE:
        normal = _careful_normal(context, mb.sub(x=x, y=average(context, x, axes, True)), axes, epsilon)
        return scaled_and_shifted(context, normal, weight, bias)
    affine = {"gamma": weight, "beta": bias}
    operands = {name: context.value(value) for name, value in affine.items() if value is not None}
    return mb.layer_norm(x=x, axes=axes, epsilon=context.positive(epsilon), **operands)


@register("coreml", "aten.rms_norm.default")
def rms_norm(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    epsilon: float | None = None,
) -> Var:
    """x / sqrt(mean(x^2) + epsilon), safe in float16: residual streams reach thousands."""
    axes = list(range(-len(normalized_shape), 0))
    epsilon = torch.finfo(torch.float32).eps if epsilon is None else epsilon
    return scaled_and_shifted(context, _careful_normal(context, context.value(x), axes, epsilon), weight, None)


def _careful_normal(context: FunctionBuilder, x: Var, axes: list[int], epsilon: float) -> Var:
    """x / sqrt(mean(x^2) + epsilon). A square of 256 overflows float16, so divide by m = max(max|x|, 1/16) first: with
    y = x / m, which lies in -1..1, the result is y / sqrt(mean(y^2) + (sqrt(epsilon) / m)^2)."""
    peak = mb.reduce_max(x=mb.abs(x=x), axes=axes, keep_dims=True)
    peak = mb.maximum(x=peak, y=context.number(LEAST_SCALE))
    scaled = mb.real_div(x=x, y=peak)
    floor = mb.square(x=mb.real_div(x=context.number(epsilon**0.5), y=peak))
    energy = mb.reduce_mean(x=mb.square(x=scaled), axes=axes, keep_dims=True)
    inverse = mb.rsqrt(x=mb.add(x=energy, y=floor), epsilon=context.number(0.0))
    return mb.mul(x=scaled, y=inverse)


def scaled_and_shifted(context: FunctionBuilder, x: Var, weight: Any, bias: Any) -> Var:
    scaled = x if weight is None else mb.mul(x=x, y=context.value(weight))
    return scaled if bias is None else mb.add(x=scaled, y=context.value(bias))


@register("coreml", "aten.batch_norm.default", "aten.instance_norm.default")
def batch_norm(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    epsilon: float,
    cudnn_enabled: bool,
) -> Var:
    """With running statistics: one product and one sum, whose factors are computed in float64 here."""
    x = context.value(x)
    is_instance = "instance" in str(node.target)
    if training and not is_instance:
        raise unsupported(node, "training=True", "a model in evaluation mode: call .eval()")
    if mean is None or (training and is_instance):
        return _group_norm(context, x, int(x.shape[1]), weight, bias, epsilon)
    ones, none = np.ones(int(x.shape[1])), np.zeros(int(x.shape[1]))
    gamma, beta, center, spread = (
        default if value is None else context.dense(value)
        for value, default in ((weight, ones), (bias, none), (mean, none), (variance, ones))
    )
    factor = gamma / np.sqrt(spread + epsilon)
    shape = [1, -1] + [1] * (x.rank - 2)
    scaled = mb.mul(x=x, y=context.array(factor.reshape(shape)))
    return mb.add(x=scaled, y=context.array((beta - center * factor).reshape(shape)))


@register("coreml", "aten.group_norm.default")
def group_norm(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    epsilon: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Var:
    return _group_norm(context, context.value(x), groups, weight, bias, epsilon)


def _group_norm(context: FunctionBuilder, x: Var, groups: int, weight: Any, bias: Any, epsilon: float) -> Var:
    shape = [int(size) for size in x.shape]
    rows = mb.reshape(x=x, shape=[shape[0], groups, math.prod(shape[1:]) // groups])
    normal = _careful_normal(context, mb.sub(x=rows, y=average(context, rows, [-1], True)), [-1], epsilon)
    broad = [1, shape[1]] + [1] * (len(shape) - 2)
    affine = [None if part is None else context.array(context.dense(part).reshape(broad)) for part in (weight, bias)]
    return scaled_and_shifted(context, mb.reshape(x=normal, shape=shape), *affine)
