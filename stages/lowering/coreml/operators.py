"""Emitters of layers: products, convolutions, pooling, attention, resampling.

norms.py, elementwise.py, shapes.py and decoder.py have the rest. A node is computed in the builder's dtype, float16 but
where ranges.py decides otherwise; a Python number becomes a constant of that dtype.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from numpy.typing import NDArray
from torch.fx import Node

from stages.lowering.coreml.builder import MASKED, FunctionBuilder
from stages.lowering.coreml.elementwise import unsupported
from stages.lowering.coreml.head import head_parts
from stages.lowering.coreml.norms import average
from stages.lowering.graph import Constant, Weight, register

_Pair = Sequence[int] | int


@register("coreml", "aten.linear.default")
def linear(context: FunctionBuilder, node: Node, x: Any, weight: Any, bias: Any = None) -> Var:
    """A weight that the program computes becomes a matmul; a head is split where the builder's head_width says so."""
    x = context.value(x)
    if not isinstance(weight, Weight):
        product = mb.matmul(x=x, y=context.value(weight), transpose_y=True)
        return product if bias is None else mb.add(x=product, y=context.value(bias))
    parts = head_parts(context, node, weight)
    if not parts:
        return _linear(context, x, weight, bias, None)
    return mb.concat(values=[_linear(context, x, weight, bias, part) for part in parts], axis=-1)


def _linear(context: FunctionBuilder, x: Var, weight: Weight, bias: Any, rows: tuple[int, int] | None) -> Var:
    first, last = rows or (0, weight.shape[0])
    if isinstance(bias, Weight):
        offset = context.weight(bias, rows)
    elif bias is None:
        offset = zeros(context, last - first)
    else:
        return mb.add(x=_linear(context, x, weight, None, rows), y=context.value(bias))
    return mb.linear(x=x, weight=context.weight(weight, rows), bias=offset)


def zeros(context: FunctionBuilder, count: int) -> Var:
    """A shared bias of zeros; left out, MIL would store one for each layer."""
    return context.constant(f"zeros_{count}{context.suffix}", lambda: np.zeros(count, context.dtype))


@register("coreml", "aten.matmul.default", "aten.bmm.default", "aten.mm.default")
def matmul(context: FunctionBuilder, node: Node, x: Any, y: Any) -> Var:
    return mb.matmul(x=context.value(x), y=context.value(y))


@register("coreml", "aten.addmm.default", "aten.baddbmm.default")
def addmm(context: FunctionBuilder, node: Node, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Var:
    if (beta, alpha) != (1, 1):
        raise unsupported(node, f"beta={beta}, alpha={alpha}", "beta=1 and alpha=1")
    return mb.add(x=mb.matmul(x=context.value(x), y=context.value(y)), y=context.value(bias))


@register(
    "coreml", "aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default", "aten.conv1d.padding",
    "aten.conv2d.padding",
)  # fmt: skip
def conv(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: _Pair = 1,
    padding: _Pair | str = 0,
    dilation: _Pair = 1,
    groups: int = 1,
) -> Var:
    kernel = node.args[1].meta["val"].shape[2:]  # type: ignore[union-attr]
    strides, dilations = _per_axis(stride, len(kernel)), _per_axis(dilation, len(kernel))
    if isinstance(padding, str):
        spans = [step * (size - 1) if padding == "same" else 0 for step, size in zip(dilations, kernel, strict=True)]
        pad = [side for span in spans for side in (span // 2, span - span // 2)]
    else:
        pad = [size for size in _per_axis(padding, len(kernel)) for _ in range(2)]
    offset = {} if bias is None else {"bias": context.value(bias)}
    return mb.conv(
        x=context.value(x),
        weight=context.value(weight),
        strides=strides,
        pad_type="custom",
        pad=pad,
        dilations=dilations,
        groups=groups,
        **offset,
    )


@register("coreml", "aten.conv_transpose1d.default", "aten.conv_transpose2d.input")
def conv_transpose(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: _Pair = 1,
    padding: _Pair = 0,
    output_padding: _Pair = 0,
    groups: int = 1,
    dilation: _Pair = 1,
) -> Var:
    """torch's output padding keeps rows that padding would cut off at the end."""
    axes = len(node.meta["val"].shape) - 2
    before, kept = _per_axis(padding, axes), _per_axis(output_padding, axes)
    if any(more > less for less, more in zip(before, kept, strict=True)):
        raise unsupported(node, f"output_padding={kept} and padding={before}", "padding of at least output_padding")
    offset = {} if bias is None else {"bias": context.value(bias)}
    return mb.conv_transpose(
        x=context.value(x),
        weight=context.value(weight),
        strides=_per_axis(stride, axes),
        pad_type="custom",
        pad=[side for size, more in zip(before, kept, strict=True) for side in (size, size - more)],
        dilations=_per_axis(dilation, axes),
        groups=groups,
        **offset,
    )


def _per_axis(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


@register("coreml", "aten.max_pool1d.default", "aten.max_pool2d.default")
def max_pool(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    kernel: _Pair,
    stride: _Pair = (),
    padding: _Pair = 0,
    dilation: _Pair = 1,
    ceil: bool = False,
) -> Var:
    axes = len(node.meta["val"].shape) - 2
    if any(step != 1 for step in _per_axis(dilation, axes)):
        raise unsupported(node, f"dilation={dilation}", "dilation=1")
    return mb.max_pool(x=context.value(x), **_window(axes, kernel, stride, padding, ceil))


@register("coreml", "aten.avg_pool1d.default", "aten.avg_pool2d.default")
def avg_pool(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    kernel: _Pair,
    stride: _Pair = (),
    padding: _Pair = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> Var:
    axes = len(node.meta["val"].shape) - 2
    if divisor is not None or (ceil and any(_per_axis(padding, axes))):
        raise unsupported(node, f"ceil_mode={ceil}, divisor_override={divisor}", "neither, with padding")
    window = _window(axes, kernel, stride, padding, ceil)
    return mb.avg_pool(x=context.value(x), exclude_padding_from_average=not count_padding, **window)


def _window(axes: int, kernel: _Pair, stride: _Pair, padding: _Pair, ceil: bool) -> dict[str, Any]:
    sizes = _per_axis(kernel, axes)
    return {
        "kernel_sizes": sizes,
        "strides": _per_axis(stride, axes) or sizes,
        "pad_type": "custom",
        "pad": [size for size in _per_axis(padding, axes) for _ in range(2)],
        "ceil_mode": ceil,
    }


@register("coreml", "aten.adaptive_avg_pool2d.default")
def adaptive_avg_pool(context: FunctionBuilder, node: Node, x: Any, size: Sequence[int]) -> Var:
    """Means of windows that may overlap: a product with a fixed matrix on each side, where they are not all equal."""
    x = context.value(x)
    before, after = [int(extent) for extent in x.shape[2:]], [int(extent) for extent in node.meta["val"].shape[2:]]
    if after == [1, 1]:
        return average(context, x, [2, 3], True)
    if all(old % new == 0 for old, new in zip(before, after, strict=True)):
        sizes = [old // new for old, new in zip(before, after, strict=True)]
        return mb.avg_pool(x=x, kernel_sizes=sizes, strides=sizes, pad_type="valid")
    return _resampled(context, x, [_windows(old, new) for old, new in zip(before, after, strict=True)])


def _windows(before: int, after: int) -> NDArray[np.float64]:
    matrix = np.zeros((after, before))
    for row in range(after):
        first, last = row * before // after, -(-(row + 1) * before // after)
        matrix[row, first:last] = 1 / (last - first)
    return matrix


@register("coreml", "aten.upsample_nearest2d.vec", "aten.upsample_nearest2d.default")
def upsample_nearest(context: FunctionBuilder, node: Node, x: Any, *options: Any) -> Var:
    x = context.value(x)
    before, after = [int(extent) for extent in x.shape[2:]], [int(extent) for extent in node.meta["val"].shape[2:]]
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if new != old:
            rows = context.table(np.arange(new) * old // new)
            x = mb.gather(x=x, indices=rows, axis=2 + axis, validate_indices=False)
    return x


@register("coreml", "aten.upsample_bilinear2d.vec", "aten.upsample_bilinear2d.default")
def upsample_bilinear(
    context: FunctionBuilder, node: Node, x: Any, size: Any = None, align_corners: bool = False, *scales: Any
) -> Var:
    """A product with a fixed matrix on each side: exact for any factor. Its rows are torch's own."""
    x = context.value(x)
    matrices = []
    for old, new in zip(x.shape[2:], node.meta["val"].shape[2:], strict=True):
        unit = torch.eye(int(old), dtype=torch.float64)[None, :, :, None]
        column = torch.nn.functional.interpolate(unit, (int(new), 1), mode="bilinear", align_corners=align_corners)
        matrices.append(column[0, :, :, 0].T.numpy())
    return _resampled(context, x, matrices)


def _resampled(context: FunctionBuilder, x: Var, matrices: list[NDArray[np.float64]]) -> Var:
    """rows @ x @ columns.T for the two last axes of x."""
    rows, columns = (context.array(matrix[None, None]) for matrix in (matrices[0], matrices[1].T))
    return mb.matmul(x=mb.matmul(x=rows, y=x), y=columns)


@register("coreml", "aten.softmax.int", "aten._softmax.default")
def softmax(context: FunctionBuilder, node: Node, x: Any, dim: int, *options: Any, **keywords: Any) -> Var:
    return mb.softmax(x=context.value(x), axis=dim)


@register("coreml", "aten.log_softmax.int")
def log_softmax(context: FunctionBuilder, node: Node, x: Any, dim: int, *options: Any) -> Var:
    x = context.value(x)
    centred = mb.sub(x=x, y=mb.reduce_max(x=x, axes=[dim], keep_dims=True))
    total = mb.reduce_sum(x=mb.exp(x=centred), axes=[dim], keep_dims=True)
    return mb.sub(x=centred, y=mb.log(x=total))


@register("coreml", "aten.scaled_dot_product_attention.default")
def attention(
    context: FunctionBuilder,
    node: Node,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Var:
    query, key, value = (context.value(part) for part in (query, key, value))
    if enable_gqa and query.shape[1] != key.shape[1]:
        raise unsupported(node, "enable_gqa", "as many heads of keys as of queries: repeat them before")
    natural = int(query.shape[-1]) ** -0.5
    if scale is not None and not math.isclose(scale, natural):
        query = mb.mul(x=query, y=context.number(scale / natural))
    if causal:
        size = int(query.shape[-2]), int(key.shape[-2])
        mask = Constant(f"causal_{size[0]}_{size[1]}", np.triu(np.full(size, MASKED, np.float32), 1))
    masked = {} if mask is None else {"attn_mask": _additive(context, mask)}
    return mb.scaled_dot_product_attention(query=query, key=key, value=value, **masked)


def _additive(context: FunctionBuilder, mask: Any) -> Var:
    """A mask of truth values (True: visible) as numbers to add; never -inf, which makes NaN on the Neural Engine."""
    if isinstance(mask, Constant) and mask.array.dtype == bool:
        return context.literal(Constant(f"{mask.name}_added", np.where(mask.array, 0, MASKED).astype(np.float32)))
    mask = context.value(mask)
    if not context.is_bool(mask):
        return mask
    return mb.select(cond=mask, a=context.number(0.0), b=context.number(MASKED))
