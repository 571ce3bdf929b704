"""ONNX emitters of what vision towers are made of: convolutions, their norms, pooling, resampling."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch.fx import Node

from stages.lowering.graph import Weight, operator_name
from stages.lowering.onnx import static
from stages.lowering.onnx.builder import GraphBuilder
from stages.lowering.onnx.shapes import integers, lowers, shape_of, unsupported


@lowers("aten.conv1d.default", "aten.conv2d.default", "aten.conv1d.padding", "aten.conv2d.padding")
def convolution(
    graph: GraphBuilder,
    node: Node,
    x: ir.Value,
    weight: Weight,
    bias: Weight | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> ir.Value:
    kernel = list(weight.shape[2:])
    padded = {"auto_pad": {"same": "SAME_UPPER", "valid": "VALID"}[padding]} if isinstance(padding, str) else {}
    return graph.op(
        "Conv",
        static.rounded(graph, x, weight),
        static.dequantized(graph, weight),
        *([bias] if bias else []),
        kernel_shape=kernel,
        strides=_each(stride, kernel),
        dilations=_each(dilation, kernel),
        group=groups,
        **(padded or {"pads": _each(padding, kernel) * 2}),  # type: ignore[arg-type]
    )


@lowers("aten.conv_transpose1d.default", "aten.conv_transpose2d.input")
def transposed_convolution(
    graph: GraphBuilder,
    node: Node,
    x: ir.Value,
    weight: Weight,
    bias: Weight | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> ir.Value:
    kernel = list(weight.shape[2:])
    return graph.op(
        "ConvTranspose",
        x,
        weight,
        *([bias] if bias else []),
        kernel_shape=kernel,
        strides=_each(stride, kernel),
        pads=_each(padding, kernel) * 2,
        output_padding=_each(output_padding, kernel),
        dilations=_each(dilation, kernel),
        group=groups,
    )


@lowers("aten.batch_norm.default")
def batch_norm(
    graph: GraphBuilder,
    node: Node,
    x: ir.Value,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    epsilon: float,
    *unused: Any,
) -> ir.Value:
    if training or mean is None:
        raise unsupported(node, "statistics of the batch", "running statistics: call eval() on the model")
    channels = int(shape_of(node)[1])
    scale = weight or graph.constant(np.ones(channels), np.float32)
    offset = bias or graph.constant(np.zeros(channels), np.float32)
    return graph.op("BatchNormalization", x, scale, offset, mean, variance, epsilon=epsilon)


@lowers("aten.group_norm.default")
def group_norm(
    graph: GraphBuilder,
    node: Node,
    x: ir.Value,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    epsilon: float = 1e-5,
    *unused: Any,
) -> ir.Value:
    """Each group normalised as one channel, then scaled channel by channel; opset 21's own has no kernel everywhere."""
    shape = [int(size) for size in shape_of(node)]
    grouped = graph.op("Reshape", x, integers(graph, shape[0], groups, -1))
    ones, zeros = (graph.constant(np.full(groups, value), np.float32) for value in (1, 0))
    result = graph.op("InstanceNormalization", grouped, ones, zeros, epsilon=epsilon)
    result = graph.op("Reshape", result, integers(graph, *shape))
    column = integers(graph, shape[1], *[1] * (len(shape) - 2))
    for operator, value in (("Mul", weight), ("Add", bias)):
        if value is not None:
            result = graph.op(operator, result, graph.op("Reshape", value, column))
    return result


@lowers("aten.max_pool2d.default", "aten.max_pool1d.default")
def max_pool(
    graph: GraphBuilder,
    node: Node,
    x: ir.Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> ir.Value:
    places = _window(node, kernel, stride, padding, ceil_mode)
    return graph.op("MaxPool", x, dilations=_each(dilation, places["kernel_shape"]), **places)


@lowers("aten.avg_pool2d.default", "aten.avg_pool1d.default")
def average_pool(
    graph: GraphBuilder,
    node: Node,
    x: ir.Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> ir.Value:
    if divisor is not None:
        raise unsupported(node, "a divisor of its own", "an average over the window")
    places = _window(node, kernel, stride, padding, ceil_mode)
    return graph.op("AveragePool", x, count_include_pad=int(count_padding), **places)


@lowers("aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool1d.default")
def adaptive_average_pool(graph: GraphBuilder, node: Node, x: ir.Value, sizes: Sequence[int]) -> ir.Value:
    source = [int(size) for size in shape_of(node.args[0])[-len(sizes) :]]
    if any(before % after for before, after in zip(source, sizes, strict=True)):
        raise unsupported(node, f"{source} to {list(sizes)}", "sizes that divide those of the input")
    if all(size == 1 for size in sizes):
        return graph.op("ReduceMean", x, integers(graph, *range(-len(sizes), 0)), keepdims=1)
    kernel = [before // after for before, after in zip(source, sizes, strict=True)]
    return graph.op("AveragePool", x, kernel_shape=kernel, strides=kernel)


@lowers("aten.upsample_nearest2d.vec", "aten.upsample_bilinear2d.vec", "aten.upsample_bicubic2d.vec")
def resize(graph: GraphBuilder, node: Node, x: ir.Value, sizes: Any, *arguments: Any) -> ir.Value:
    """To the captured size. A factor that was given counts as it is; torch computes one from a size that was given."""
    (*aligned, factors) = arguments
    places = [float(factor) for factor in factors] if factors else None
    nearest = "nearest" in operator_name(node)
    corners = "align_corners" if aligned and aligned[0] else "asymmetric" if nearest else "half_pixel"
    mode: dict[str, Any] = {"mode": "nearest", "nearest_mode": "floor"} if nearest else {"mode": "linear"}
    if "bicubic" in operator_name(node):
        mode = {"mode": "cubic", "cubic_coeff_a": -0.75}
    if places:
        extent: list[Any] = [graph.constant([1.0, 1.0, *places], np.float32)]
    else:
        extent = [None, integers(graph, *(int(size) for size in shape_of(node)))]
    return graph.op("Resize", x, None, *extent, coordinate_transformation_mode=corners, **mode)


def _window(
    node: Node, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> dict[str, Any]:
    if ceil_mode:
        raise unsupported(node, "ceil_mode", "ceil_mode=False; pad the input instead")
    extent = [0] * (2 if "2d" in operator_name(node) else 1)
    size = _each(kernel, extent)
    return {
        "kernel_shape": size,
        "strides": _each(stride or kernel, extent),
        "pads": _each(padding, extent) * 2,
    }


def _each(numbers: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """One number for each axis of the kernel; a single one holds for all."""
    return list(numbers) if len(numbers) == len(kernel) else [numbers[0]] * len(kernel)
