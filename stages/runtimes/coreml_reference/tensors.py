"""Rules of the operators that move numbers about: shapes, slices, gathers, joins."""

from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch.nn import functional as F

from stages.runtimes.coreml_reference.operators import Call, Kernel, operator

Index = tuple[Any, ...]


@operator("reshape")
def reshape(call: Call) -> Kernel:
    if "shape" not in call.constants:
        return Kernel(lambda x, shape: x.reshape(_sizes(x, shape.tolist())), ("x", "shape"), view=True)
    shape = call.static("shape")
    if 0 in shape:
        return Kernel(lambda x: x.reshape(_sizes(x, shape)), ("x",), view=True)
    return Kernel(lambda x: x.reshape(shape), ("x",), view=True)


def _sizes(x: torch.Tensor, shape: Sequence[int]) -> list[int]:
    """MIL's 0 keeps the size of that axis."""
    return [size or x.shape[axis] for axis, size in enumerate(shape)]


@operator("transpose")
def transpose(call: Call) -> Kernel:
    order = call.static("perm")
    return Kernel(lambda x: x.permute(order), ("x",), view=True)


@operator("expand_dims")
def expand_dims(call: Call) -> Kernel:
    axes = call.static("axes")
    rank = call.ranks["x"] + len(axes)
    places = sorted(axis % rank for axis in axes)

    def function(x: torch.Tensor) -> torch.Tensor:
        for place in places:
            x = x.unsqueeze(place)
        return x

    return Kernel(function, ("x",), view=True)


@operator("squeeze")
def squeeze(call: Call) -> Kernel:
    axes = call.static("axes", None)
    return Kernel(lambda x: x.squeeze() if axes is None else x.squeeze(tuple(axes)), ("x",), view=True)


@operator("flatten2d")
def flatten2d(call: Call) -> Kernel:
    axis = call.static("axis", 1) % call.ranks["x"]
    return Kernel(lambda x: x.reshape(x.shape[:axis].numel(), -1), ("x",), view=True)


@operator("concat")
def concat(call: Call) -> Kernel:
    axis = call.static("axis")
    if call.static("interleave", False):
        return Kernel(
            lambda *values: torch.stack(values, axis + 1 if axis >= 0 else axis).flatten(*_pair(axis)), ("values",)
        )
    if call.ranks["values"] == 0:
        return Kernel(lambda *values: torch.stack(values), ("values",))
    return Kernel(lambda *values: torch.cat(values, axis), ("values",))


@operator("stack")
def stack(call: Call) -> Kernel:
    axis = call.static("axis")
    return Kernel(lambda *values: torch.stack(values, axis), ("values",))


@operator("split")
def split(call: Call) -> Kernel:
    axis = call.static("axis")
    sizes = call.static("split_sizes", None)
    if sizes is not None:
        return Kernel(lambda x: torch.split(x, sizes, axis), ("x",), view=True)
    parts = call.static("num_splits")
    return Kernel(lambda x: torch.chunk(x, parts, axis), ("x",), view=True)


def _pair(axis: int) -> tuple[int, int]:
    """The axis and the one stacked behind it."""
    return (axis, axis + 1) if axis >= 0 else (axis - 1, axis)


@operator("tile")
def tile(call: Call) -> Kernel:
    return Kernel(lambda x, reps: x.repeat(reps.tolist()), ("x", "reps"))


@operator("pad")
def pad(call: Call) -> Kernel:
    """The last axes of x, each as `pad` says: reflected without the edge, replicated, or filled."""
    mode, fill = call.static("mode", "constant"), call.static("constant_val", 0.0)

    def function(x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        amounts = pad.tolist()
        if mode == "constant":
            pairs = [amounts[start : start + 2] for start in range(0, len(amounts), 2)]
            return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=fill)
        first = x.dim() - len(amounts) // 2
        for axis in range(first, x.dim()):
            before, after = amounts[2 * (axis - first) : 2 * (axis - first) + 2]
            if before or after:
                places, last = torch.arange(-before, x.shape[axis] + after), x.shape[axis] - 1
                places = last - (last - places.abs()).abs() if mode == "reflect" else places.clamp(0, last)
                x = x.index_select(axis, places)
        return x

    return Kernel(function, ("x", "pad"))


@operator("reverse")
def reverse(call: Call) -> Kernel:
    axes = call.static("axes", list(range(call.ranks["x"])))
    return Kernel(lambda x: x.flip(axes), ("x",))


@operator("reverse_sequence")
def reverse_sequence(call: Call) -> Kernel:
    along, batch = call.static("seq_axis", 0), call.static("batch_axis", 0)

    def function(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        moved = x.movedim((batch, along), (0, 1))
        places = torch.arange(moved.shape[1])[None]
        ends = lengths.long()[:, None]
        rows = torch.where(places < ends, ends - 1 - places, places)
        return moved[torch.arange(len(moved))[:, None], rows].movedim((0, 1), (batch, along))

    return Kernel(function, ("x", "lengths"))


@operator("sliding_windows")
def sliding_windows(call: Call) -> Kernel:
    axis, size, stride = call.static("axis"), call.static("size"), call.static("stride", 1)
    axis %= call.ranks["x"]
    return Kernel(lambda x: x.unfold(axis, size, stride).movedim(-1, axis + 1), ("x",))


@operator("fill_like")
def fill_like(call: Call) -> Kernel:
    return Kernel(lambda x, value: torch.full(x.shape, value.item(), dtype=value.dtype), ("ref_tensor", "value"))


@operator("slice_by_index")
def slice_by_index(call: Call) -> Kernel:
    index, bounds = _indexer(call)
    take = _take_backwards if any(stride < 0 for stride in call.static("stride", [])) else getitem
    if bounds:
        return Kernel(lambda x, *given: take(x, index(given)), ("x", *bounds), view=True)
    fixed = index(())
    return Kernel(lambda x: take(x, fixed), ("x",), view=True)


@operator("slice_by_size")
def slice_by_size(call: Call) -> Kernel:
    def function(x: torch.Tensor, begin: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        pairs = zip(begin.tolist(), size.tolist(), strict=True)
        return x[tuple(slice(first, None if count < 0 else first + count) for first, count in pairs)]

    return Kernel(function, ("x", "begin", "size"), view=True)


@operator("slice_update")
def slice_update(call: Call) -> Kernel:
    index, bounds = _indexer(call)

    def in_place(x: torch.Tensor, update: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        x[index(given)] = update
        return x

    def function(x: torch.Tensor, update: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return in_place(x.clone(), update, *given)

    return Kernel(function, ("x", "update", *bounds), in_place=in_place)


def _indexer(call: Call) -> tuple[Callable[[Sequence[torch.Tensor]], Index], tuple[str, ...]]:
    """How to index: a function of the bounds that the program computes, and the names of those."""
    rank = call.ranks["x"]
    strides = call.static("stride", [1] * rank)
    masks = [call.static(f"{name}_mask", [False] * rank) for name in ("begin", "end", "squeeze")]

    plain = all(stride == 1 for stride in strides) and not any(map(any, masks))

    def index(begin: Sequence[int], end: Sequence[int]) -> Index:
        if plain:
            return tuple(map(slice, begin, end))
        return tuple(
            first if squeezed else slice(None if from_start else first, None if to_end else last, stride)
            for first, last, stride, from_start, to_end, squeezed in zip(begin, end, strides, *masks, strict=True)
        )

    computed = tuple(name for name in ("begin", "end") if name not in call.constants)
    if not computed:
        fixed = index(call.static("begin"), call.static("end"))
        return lambda given: fixed, ()

    def from_bounds(given: Sequence[torch.Tensor]) -> Index:
        values = dict(zip(computed, given, strict=True))
        begin, end = (values[name].tolist() if name in values else call.static(name) for name in ("begin", "end"))
        return index(begin, end)

    return from_bounds, computed


def _take_backwards(x: torch.Tensor, index: Index) -> torch.Tensor:
    """x[index]; torch knows no negative steps, so such axes are gathered."""
    backwards = {axis: part for axis, part in enumerate(index) if isinstance(part, slice) and (part.step or 1) < 0}
    for axis, part in backwards.items():
        x = x.index_select(axis, torch.tensor(range(*part.indices(x.shape[axis])), dtype=torch.long))
    return x[tuple(slice(None) if axis in backwards else part for axis, part in enumerate(index))]


@operator("shape")
def shape(call: Call) -> Kernel:
    return Kernel(lambda x: torch.tensor(x.shape, dtype=torch.int32), ("x",))


@operator("range_1d")
def range_1d(call: Call) -> Kernel:
    def function(start: torch.Tensor, end: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)

    return Kernel(function, ("start", "end", "step"))


@operator("fill")
def fill(call: Call) -> Kernel:
    def function(shape: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.full(shape.tolist(), value.item(), dtype=value.dtype)

    return Kernel(function, ("shape", "value"))


@operator("band_part")
def band_part(call: Call) -> Kernel:
    lower, upper = call.static("lower", -1), call.static("upper", -1)

    def function(x: torch.Tensor) -> torch.Tensor:
        x = x if upper < 0 else x.tril(upper)
        return x if lower < 0 else x.triu(-lower)

    return Kernel(function, ("x",))
