"""ONNX emitters that move values about: shapes, axes, slices, joins, and tensors made of nothing."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from torch.fx import Node

from pipelines.errors import LoweringError
from stages.lowering.graph import operator_name, register, source_line
from stages.lowering.onnx.builder import GraphBuilder, data_type

lowers = partial(register, "onnx")
Shape = tuple[int | str, ...]
_FARTHEST = np.iinfo(np.int64).max


def shape_of(node: Any) -> Shape:
    """The captured shape of a node's result; a size that varies is its symbol, as a string."""
    return tuple(size if isinstance(size, int) else str(size) for size in node.meta["val"].shape)


def reshape(graph: GraphBuilder, x: ir.Value, source: Shape, target: Shape) -> ir.Value:
    """x from shape source to target. What comes back to the shape that it had before is that value itself."""
    origin, before = graph.shared.get(("reshaped", x), (x, source))
    if before == target:
        return origin
    varying = sum(isinstance(size, str) for size in target)
    if varying > 1:
        raise LoweringError(f"a reshape to {target} has more than one size that varies", hint="ONNX allows one.")
    sizes = [-1 if isinstance(size, str) else size for size in target]
    result = graph.op("Reshape", origin, graph.constant(sizes, np.int64))
    graph.shared["reshaped", result] = (origin, before)
    return result


def transpose(graph: GraphBuilder, x: ir.Value, permutation: Sequence[int]) -> ir.Value:
    """x with its axes permuted; a permutation that undoes the one before it gives that one's input."""
    origin, before = graph.shared.get(("transposed", x), (x, list(range(len(permutation)))))
    total = [before[axis] for axis in permutation]
    if total == sorted(total):
        return origin
    result = graph.op("Transpose", origin, perm=total)
    graph.shared["transposed", result] = (origin, total)
    return result


def unsupported(node: Node, what: str, expected: str) -> LoweringError:
    """An operator that has a lowering, though not in this form."""
    return LoweringError(
        f"operator '{operator_name(node)}' with {what} has no lowering for onnx; it comes from {source_line(node)}",
        hint=f"Expected {expected}.",
    )


def dtype_of(node: Node) -> ir.DataType:
    return data_type(node.meta["val"].dtype)


def integers(graph: GraphBuilder, *numbers: int) -> ir.Value:
    return graph.constant(list(numbers), np.int64)


@lowers(
    "aten.view.default",
    "aten.reshape.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
    "aten.view_as.default",
)
def to_shape(graph: GraphBuilder, node: Node, x: Any, *unused: Any) -> ir.Value:
    return reshape(graph, graph.value(x), shape_of(node.args[0]), shape_of(node))


@lowers("aten.permute.default")
def permute(graph: GraphBuilder, node: Node, x: Any, axes: Sequence[int]) -> ir.Value:
    return transpose(graph, graph.value(x), [axis % len(axes) for axis in axes])


@lowers("aten.transpose.int", "aten.t.default", "aten.mT.default", "aten.numpy_T.default")
def swap_axes(graph: GraphBuilder, node: Node, x: Any, first: int = -2, second: int = -1) -> ir.Value:
    axes = list(range(len(shape_of(node))))
    axes[first], axes[second] = axes[second], axes[first]
    return transpose(graph, graph.value(x), axes)


@lowers("aten.expand.default", "aten.expand_as.default")
def expand(graph: GraphBuilder, node: Node, x: Any, *unused: Any, **keywords: Any) -> ir.Value:
    if shape_of(node) == shape_of(node.args[0]):
        return graph.value(x)
    return graph.op("Expand", x, integers(graph, *_fixed(node)))


@lowers("aten.repeat.default")
def repeat(graph: GraphBuilder, node: Node, x: Any, repeats: Sequence[int]) -> ir.Value:
    missing = len(repeats) - len(shape_of(node.args[0]))
    x = graph.op("Unsqueeze", x, integers(graph, *range(missing))) if missing else x
    return graph.op("Tile", x, integers(graph, *repeats))


@lowers("aten.unbind.int")
def unbind(graph: GraphBuilder, node: Node, x: Any, axis: int = 0) -> list[ir.Value]:
    parts = _split(graph, x, axis, [1] * len(node.meta["val"]))
    return [graph.op("Squeeze", part, integers(graph, axis)) for part in parts]


@lowers("aten.chunk.default", "aten.split.Tensor", "aten.split_with_sizes.default")
def split(graph: GraphBuilder, node: Node, x: Any, how: Any, axis: int = 0) -> list[ir.Value]:
    return _split(graph, x, axis, [int(part.shape[axis]) for part in node.meta["val"]])


@lowers("aten.cat.default")
def concatenate(graph: GraphBuilder, node: Node, parts: Sequence[Any], axis: int = 0) -> ir.Value:
    return graph.op("Concat", *(graph.cast(part, dtype_of(node)) for part in parts), axis=axis)


@lowers("aten.stack.default")
def stack(graph: GraphBuilder, node: Node, parts: Sequence[Any], axis: int = 0) -> ir.Value:
    axes = integers(graph, axis)
    return graph.op("Concat", *(graph.op("Unsqueeze", part, axes) for part in parts), axis=axis)


@lowers("aten.slice.Tensor")
def slice_(
    graph: GraphBuilder, node: Node, x: Any, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> ir.Value:
    bounds = [0 if start is None else start, _FARTHEST if end is None else min(end, _FARTHEST)]
    if any(not isinstance(bound, int) for bound in bounds):
        raise unsupported(node, "bounds that vary", "bounds that are numbers")
    if shape_of(node) == shape_of(node.args[0]):
        return graph.value(x)
    return graph.op("Slice", x, *(integers(graph, number) for number in (*bounds, axis, step)))


@lowers("aten.select.int")
def select(graph: GraphBuilder, node: Node, x: Any, axis: int, index: int) -> ir.Value:
    return graph.op("Gather", x, graph.constant(index, np.int64), axis=axis)


@lowers("aten.index_select.default")
def index_select(graph: GraphBuilder, node: Node, x: Any, axis: int, index: Any) -> ir.Value:
    return graph.op("Gather", x, index, axis=axis)


@lowers("aten.gather.default")
def gather(graph: GraphBuilder, node: Node, x: Any, axis: int, index: Any, *unused: Any, **keywords: Any) -> ir.Value:
    return graph.op("GatherElements", x, index, axis=axis)


@lowers("aten.index.Tensor")
def index(graph: GraphBuilder, node: Node, x: Any, indices: Sequence[Any]) -> ir.Value:
    """x[i] and x[:, i], one tensor of indices; x[i, j] of leading axes."""
    given = [axis for axis, place in enumerate(indices) if place is not None]
    if any(graph.value(indices[axis]).dtype == ir.DataType.BOOL for axis in given):
        raise unsupported(node, "a mask", "integer indices, or torch.where")
    if len(given) == 1:
        return graph.op("Gather", x, indices[given[0]], axis=given[0])
    if given != list(range(len(given))):
        raise unsupported(node, "indices behind a slice", "indices of the leading axes, or of one axis")
    shape = np.broadcast_shapes(*(_fixed(place) for place in node.args[1]))  # type: ignore[union-attr, arg-type]
    columns = [
        graph.op("Expand", graph.cast(place, ir.DataType.INT64), integers(graph, *shape, 1))
        if len(shape) == 0
        else graph.op(
            "Unsqueeze",
            graph.op("Expand", graph.cast(place, ir.DataType.INT64), integers(graph, *shape)),
            integers(graph, -1),
        )
        for place in indices
    ]
    return graph.op("GatherND", x, graph.op("Concat", *columns, axis=-1), dtype=graph.value(x).dtype)


@lowers("aten.pad.default", "aten.constant_pad_nd.default")
def pad(
    graph: GraphBuilder, node: Node, x: Any, sizes: Sequence[int], mode: str = "constant", value: float | None = None
) -> ir.Value:
    """sizes: before and after, of the last axis first."""
    rank, count = len(shape_of(node)), len(sizes) // 2
    before = [0] * (rank - count) + list(sizes[::2])[::-1]
    after = [0] * (rank - count) + list(sizes[1::2])[::-1]
    onnx_modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    filling = [graph.operand(value or 0, graph.value(x))] if mode == "constant" else []
    return graph.op("Pad", x, integers(graph, *before, *after), *filling, mode=onnx_modes[mode])


@lowers("aten.pixel_shuffle.default")
def pixel_shuffle(graph: GraphBuilder, node: Node, x: Any, factor: int) -> ir.Value:
    return graph.op("DepthToSpace", x, blocksize=factor, mode="CRD")


@lowers("aten.triu.default", "aten.tril.default")
def triangle(graph: GraphBuilder, node: Node, x: Any, diagonal: int = 0) -> ir.Value:
    upper = int(operator_name(node).startswith("aten.triu"))
    return graph.op("Trilu", x, graph.constant(diagonal, np.int64), upper=upper)


@lowers("aten.flip.default")
def flip(graph: GraphBuilder, node: Node, x: Any, dims: Sequence[int]) -> Any:
    return roll(graph, node, x, (None,) * len(dims), dims)


@lowers("aten.roll.default")
def roll(graph: GraphBuilder, node: Node, x: Any, shifts: Sequence[int | None], dims: Sequence[int] = ()) -> Any:
    """Rows in another order, one axis after the other; a shift of None turns the axis round."""
    if not dims:
        raise unsupported(node, "no dims", "the axes to roll along")
    for shift, dim in zip(shifts, dims, strict=True):
        rows = np.arange(int(node.meta["val"].shape[dim]))
        order = rows[::-1] if shift is None else np.roll(rows, shift)
        x = graph.op("Gather", x, graph.constant(order, np.int64), axis=dim)
    return x


@lowers("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def arange(graph: GraphBuilder, node: Node, *bounds: Any, **keywords: Any) -> ir.Value:
    if any(not isinstance(bound, int | float) for bound in bounds):
        raise unsupported(node, "bounds that vary", "bounds that are numbers")
    return graph.constant(np.arange(*bounds), dtype_of(node).numpy().type)


@lowers("aten.eye.default", "aten.eye.m")
def eye(graph: GraphBuilder, node: Node, rows: int, columns: int | None = None, **keywords: Any) -> ir.Value:
    return graph.constant(np.eye(rows, columns), dtype_of(node).numpy().type)


_FILLINGS = {"zeros": 0, "zeros_like": 0, "new_zeros": 0, "ones": 1, "ones_like": 1, "new_ones": 1}


@lowers(*(f"aten.{name}.default" for name in (*_FILLINGS, "full", "full_like", "new_full", "scalar_tensor")))
def filled(graph: GraphBuilder, node: Node, *arguments: Any, **keywords: Any) -> ir.Value:
    name = operator_name(node).split(".")[1]
    value = _FILLINGS[name] if name in _FILLINGS else arguments[-1]
    number = graph.constant(value, dtype_of(node).numpy().type)
    shape = _fixed(node)
    return graph.op("Expand", number, integers(graph, *shape)) if shape else number


@lowers(
    "aten.contiguous.default",
    "aten.clone.default",
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.alias.default",
    "aten.detach.default",
    "aten.detach_.default",
    "aten.lift_fresh_copy.default",
    "aten.lift_fresh.default",
)
def same(graph: GraphBuilder, node: Node, x: Any, *unused: Any, **keywords: Any) -> Any:
    return x


@lowers("aten._assert_tensor_metadata.default")
def nothing(graph: GraphBuilder, node: Node, *unused: Any, **keywords: Any) -> None:
    """What torch checked while it captured."""


@lowers("aten.sym_size.int")
def size(graph: GraphBuilder, node: Node, *unused: Any) -> Any:
    """A size that varies stays a symbol: `reshape` reads it from the captured shapes."""
    return node.meta["val"]


def _split(graph: GraphBuilder, x: Any, axis: int, sizes: list[int]) -> list[ir.Value]:
    return graph.ops(len(sizes), "Split", x, integers(graph, *sizes), axis=axis)


def _fixed(node: Any) -> list[int]:
    shape = shape_of(node)
    if any(isinstance(size, str) for size in shape):
        raise unsupported(node, f"the shape {shape}", "a shape of fixed sizes")
    return [int(size) for size in shape]
