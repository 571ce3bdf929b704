"""Emitters of what moves numbers about: shapes, slices, joins, look-ups, casts; and of constants."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from torch.fx import Node

from stages.lowering.coreml.builder import FunctionBuilder
from stages.lowering.coreml.elementwise import unsupported
from stages.lowering.coreml.head import look_up, tied_parts
from stages.lowering.graph import Constant, Weight, register


def _shape(node: Node) -> list[int]:
    return [int(size) for size in node.meta["val"].shape]


@register(
    "coreml", "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints",
    "aten.unflatten.int", "aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default", "aten.view_as.default",
    "aten.reshape_as.default",
)  # fmt: skip
def reshape(context: FunctionBuilder, node: Node, x: Any, *arguments: Any, **options: Any) -> Var:
    return mb.reshape(x=context.value(x), shape=_shape(node))


@register("coreml", "aten.unsqueeze.default")
def unsqueeze(context: FunctionBuilder, node: Node, x: Any, dim: int) -> Var:
    return mb.expand_dims(x=context.value(x), axes=[dim])


@register("coreml", "aten.permute.default")
def permute(context: FunctionBuilder, node: Node, x: Any, dims: Sequence[int]) -> Var:
    return mb.transpose(x=context.value(x), perm=list(dims))


@register("coreml", "aten.transpose.int", "aten.swapaxes.default")
def transpose(context: FunctionBuilder, node: Node, x: Any, first: int, second: int) -> Var:
    x = context.value(x)
    order = list(range(x.rank))
    order[first], order[second] = order[second], order[first]
    return mb.transpose(x=x, perm=order)


@register("coreml", "aten.t.default", "aten.numpy_T.default", "aten.mT.default")
def flip_axes(context: FunctionBuilder, node: Node, x: Any) -> Var:
    x = context.value(x)
    return x if x.rank < 2 else transpose(context, node, x, -2, -1)


@register("coreml", "aten.movedim.int")
def movedim(context: FunctionBuilder, node: Node, x: Any, source: int, destination: int) -> Var:
    x = context.value(x)
    order = [axis for axis in range(x.rank) if axis != source % x.rank]
    order.insert(destination % x.rank, source % x.rank)
    return mb.transpose(x=x, perm=order)


@register("coreml", "aten.unbind.int")
def unbind(context: FunctionBuilder, node: Node, x: Any, dim: int = 0) -> list[Var]:
    x = context.value(x)
    parts = mb.split(x=x, num_splits=x.shape[dim], axis=dim) if x.shape[dim] > 1 else [x]
    return [mb.squeeze(x=part, axes=[dim]) for part in parts]


@register(
    "coreml", "aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default", "aten.tensor_split.sections"
)
def split(context: FunctionBuilder, node: Node, x: Any, how: Any, dim: int = 0) -> list[Var]:
    x = context.value(x)
    sizes = [int(part.shape[dim]) for part in node.meta["val"]]
    return [x] if len(sizes) == 1 else list(mb.split(x=x, split_sizes=sizes, axis=dim))


@register("coreml", "aten.cat.default", "aten.concat.default")
def cat(context: FunctionBuilder, node: Node, parts: Sequence[Any], dim: int = 0) -> Var:
    floating = node.meta["val"].dtype.is_floating_point
    values = [context.operand(part, floating) for part in parts]
    values = [value for value in values if 0 not in value.shape]
    return values[0] if len(values) == 1 else mb.concat(values=values, axis=dim)


@register("coreml", "aten.stack.default")
def stack(context: FunctionBuilder, node: Node, parts: Sequence[Any], dim: int = 0) -> Var:
    values = [mb.expand_dims(x=context.value(part), axes=[dim]) for part in parts]
    return mb.concat(values=values, axis=dim)


@register("coreml", "aten.slice.Tensor")
def slice_axis(
    context: FunctionBuilder,
    node: Node,
    x: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Var:
    x = context.value(x)
    dim, size = dim % x.rank, int(x.shape[dim])
    first, last, _ = slice(start, end).indices(size)
    if (first, last, step) == (0, size, 1):
        return x
    begin, stop, stride = [0] * x.rank, [int(extent) for extent in x.shape], [1] * x.rank
    begin[dim], stop[dim], stride[dim] = first, last, step
    steps = {"stride": stride} if step != 1 else {}
    return mb.slice_by_index(x=x, begin=begin, end=stop, **steps)


@register("coreml", "aten.narrow.default")
def narrow(context: FunctionBuilder, node: Node, x: Any, dim: int, start: int, length: int) -> Var:
    return slice_axis(context, node, x, dim, start, start + length)


@register("coreml", "aten.select.int")
def select(context: FunctionBuilder, node: Node, x: Any, dim: int, index: int) -> Var:
    x = context.value(x)
    index %= int(x.shape[dim])
    return mb.squeeze(x=slice_axis(context, node, x, dim, index, index + 1), axes=[dim % x.rank])


@register("coreml", "aten.flip.default")
def flip(context: FunctionBuilder, node: Node, x: Any, dims: Sequence[int]) -> Var:
    x = context.value(x)
    for dim in sorted({dim % x.rank for dim in dims}):
        rows = context.table(np.arange(int(x.shape[dim]))[::-1])
        x = mb.gather(x=x, indices=rows, axis=dim, validate_indices=False)
    return x


@register("coreml", "aten.roll.default")
def roll(context: FunctionBuilder, node: Node, x: Any, shifts: Sequence[int], dims: Sequence[int] = ()) -> Var:
    x = context.value(x)
    if not dims:
        raise unsupported(node, "no dims", "the axes to roll along")
    for shift, dim in zip(shifts, dims, strict=True):
        size = int(x.shape[dim])
        if shift % size:
            parts = mb.split(x=x, split_sizes=[size - shift % size, shift % size], axis=dim)
            x = mb.concat(values=[parts[1], parts[0]], axis=dim)
    return x


@register("coreml", "aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default")
def expand(context: FunctionBuilder, node: Node, x: Any, *arguments: Any, **options: Any) -> Var:
    x, shape = context.value(x), _shape(node)
    if x.rank < len(shape):
        x = mb.reshape(x=x, shape=[1] * (len(shape) - x.rank) + [int(size) for size in x.shape])
    counts = [new if int(old) == 1 else 1 for old, new in zip(x.shape, shape, strict=True)]
    return x if all(count == 1 for count in counts) else mb.tile(x=x, reps=counts)


@register("coreml", "aten.repeat.default", "aten.tile.default")
def repeat(context: FunctionBuilder, node: Node, x: Any, counts: Sequence[int]) -> Var:
    x = context.value(x)
    if x.rank < len(counts):
        x = mb.reshape(x=x, shape=[1] * (len(counts) - x.rank) + [int(size) for size in x.shape])
    return mb.tile(x=x, reps=[1] * (x.rank - len(counts)) + list(counts))


@register("coreml", "aten.repeat_interleave.self_int")
def repeat_interleave(context: FunctionBuilder, node: Node, x: Any, count: int, dim: int, **options: Any) -> Var:
    x = context.value(x)
    dim %= x.rank
    counts = [1] * (x.rank + 1)
    counts[dim + 1] = count
    return mb.reshape(x=mb.tile(x=mb.expand_dims(x=x, axes=[dim + 1]), reps=counts), shape=_shape(node))


@register("coreml", "aten.pad.default", "aten.constant_pad_nd.default")
def pad(
    context: FunctionBuilder, node: Node, x: Any, amounts: Sequence[int], mode: Any = "constant", value: Any = None
) -> Var:
    x = context.value(x)
    if not isinstance(mode, str):  # constant_pad_nd's third argument is the value
        mode, value = "constant", mode
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}
    if mode not in kinds or min(amounts) < 0:
        raise unsupported(node, f"mode='{mode}', pad={list(amounts)}", f"one of {', '.join(kinds)}, nothing cut off")
    pairs = [list(amounts[start : start + 2]) for start in range(0, len(amounts), 2)]
    pairs += [[0, 0]] * (x.rank - len(pairs) if mode == "constant" else 0)
    fill = {"constant_val": context.number(value or 0.0)} if mode == "constant" else {}
    return mb.pad(x=x, pad=[side for pair in reversed(pairs) for side in pair], mode=kinds[mode], **fill)


@register("coreml", "aten.pixel_shuffle.default")
def pixel_shuffle(context: FunctionBuilder, node: Node, x: Any, factor: int) -> Var:
    return mb.pixel_shuffle(x=context.value(x), upscale_factor=factor)


@register("coreml", "aten.embedding.default")
def embedding(context: FunctionBuilder, node: Node, weight: Any, indices: Any, *options: Any) -> Var:
    table, ids = node.args[0], context.value(indices)
    parts = tied_parts(context, table, weight) if isinstance(weight, Weight) and isinstance(table, Node) else []
    if parts:
        return look_up(context, weight, ids, parts)
    return mb.gather(x=context.value(weight), indices=ids, axis=0, validate_indices=False)


@register("coreml", "aten.index_select.default")
def index_select(context: FunctionBuilder, node: Node, x: Any, dim: int, indices: Any) -> Var:
    return mb.gather(x=context.value(x), indices=context.value(indices), axis=dim, validate_indices=False)


@register("coreml", "aten.index.Tensor")
def index(context: FunctionBuilder, node: Node, x: Any, indices: Sequence[Any]) -> Var:
    """Indexing by one tensor of integers, along any one axis."""
    given = [axis for axis, part in enumerate(indices) if part is not None]
    part = indices[given[0]] if given else None
    mask = part.array.dtype.kind == "b" if isinstance(part, Constant) else context.is_bool(part)
    if len(given) != 1 or mask:
        raise unsupported(node, f"{len(given)} index tensors, or a mask", "one tensor of integers")
    return mb.gather(x=context.value(x), indices=context.value(part), axis=given[0], validate_indices=False)


@register("coreml", "aten.gather.default")
def gather(context: FunctionBuilder, node: Node, x: Any, dim: int, indices: Any, **options: Any) -> Var:
    return mb.gather_along_axis(x=context.value(x), indices=context.value(indices), axis=dim, validate_indices=False)


@register("coreml", "aten.tril.default", "aten.triu.default")
def triangle(context: FunctionBuilder, node: Node, x: Any, diagonal: int = 0) -> Var:
    """By a fixed mask: what lies outside becomes 0."""
    x = context.value(x)
    mask = np.ones([int(size) for size in x.shape[-2:]], bool)
    kept = np.tril(mask, diagonal) if "tril" in str(node.target) else np.triu(mask, diagonal)
    return mb.select(cond=kept, a=x, b=context.operand(0, not context.is_integer(x)))


@register(
    "coreml", "aten.contiguous.default", "aten.clone.default", "aten.dropout.default", "aten.alias.default",
    "aten.detach.default", "aten.lift_fresh_copy.default", "aten.feature_dropout.default", "aten.detach_.default",
)  # fmt: skip
def identity(context: FunctionBuilder, node: Node, x: Any, *arguments: Any, **options: Any) -> Any:
    return x


@register("coreml", "aten._assert_tensor_metadata.default", "aten._assert_scalar.default")
def nothing(context: FunctionBuilder, node: Node, *arguments: Any, **options: Any) -> None:
    """What torch checks while it runs was checked when the graph was captured."""


@register(
    "coreml", "aten.to.dtype", "aten.to.device", "aten.to.dtype_layout", "aten.to.other", "aten._to_copy.default",
    "aten.type_as.default",
)  # fmt: skip
def cast(context: FunctionBuilder, node: Node, x: Any, *arguments: Any, **options: Any) -> Var:
    return context.converted(context.value(x), node.meta["val"].dtype)


@register(
    "coreml", "aten.full_like.default", "aten.zeros_like.default", "aten.ones_like.default", "aten.new_zeros.default",
    "aten.new_ones.default", "aten.new_full.default",
)  # fmt: skip
def filled(context: FunctionBuilder, node: Node, x: Any, *arguments: Any, **options: Any) -> Constant:
    name = str(node.target)
    value = arguments[-1] if "full" in name else 1 if "ones" in name else 0
    kind = node.meta["val"].dtype
    dtype = np.float32 if kind.is_floating_point else bool if "bool" in str(kind) else np.int32
    return Constant(node.name, np.full(_shape(node), value, dtype))


@register(
    "coreml", "aten.arange.default", "aten.arange.start", "aten.arange.start_step", "aten.full.default",
    "aten.zeros.default", "aten.ones.default", "aten.linspace.default", "aten.scalar_tensor.default",
    "aten.eye.default", "aten.eye.m", "aten.empty.memory_format",
)  # fmt: skip
def made_here(context: FunctionBuilder, node: Node, *arguments: Any, **options: Any) -> Var:
    """Tensors made of numbers are computed at lowering (builder.py); only a size that varies comes here."""
    raise unsupported(node, "sizes that vary", "sizes that are known when the graph is captured")
