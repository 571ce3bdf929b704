"""Rules of the operators that move numbers about: shapes, slices, gathers, joins."""

from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch.nn import functional as F

from stages.runtimes.coreml_reference.operators import Call, Kernel, operator
from stages.runtimes.coreml_reference.package import ProgramError
from stages.runtimes.coreml_reference.weights import Weight

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
    if call.static("interleave", False):
        raise ProgramError(f"operation '{call.name}' (concat): interleaved parts are not supported")
    axis = call.static("axis")
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


@operator("tile")
def tile(call: Call) -> Kernel:
    counts = call.static("reps")
    return Kernel(lambda x: x.repeat(counts), ("x",))


@operator("pad")
def pad(call: Call) -> Kernel:
    amounts, mode = call.static("pad"), call.static("mode", "constant")
    fill = call.static("constant_val", 0.0)
    pairs = [amounts[start : start + 2] for start in range(0, len(amounts), 2)]
    reverse = [amount for pair in reversed(pairs) for amount in pair]
    if mode == "constant":
        return Kernel(lambda x: F.pad(x, reverse, value=fill), ("x",))
    return Kernel(lambda x: F.pad(x, reverse, mode="reflect" if mode == "reflect" else "replicate"), ("x",))


@operator("gather")
def gather(call: Call) -> Kernel:
    axis = call.static("axis", 0) % max(call.ranks["x"], 1)
    if call.static("batch_dims", 0):
        raise ProgramError(f"operation '{call.name}' (gather): batch_dims is not supported")
    before = (slice(None),) * axis

    def rows(weight: Weight, indices: torch.Tensor) -> torch.Tensor:
        numbers = indices.long().reshape(-1) % weight.shape[0]
        return weight.rows(numbers).reshape(*indices.shape, *weight.shape[1:]).to(call.dtype("x"))

    return Kernel(lambda x, indices: x[(*before, indices.long())], ("x", "indices"), packed=None if axis else rows)


@operator("gather_along_axis")
def gather_along_axis(call: Call) -> Kernel:
    axis = call.static("axis", 0)
    return Kernel(lambda x, indices: x.gather(axis, indices.long() % x.shape[axis]), ("x", "indices"))


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


@operator("upsample_nearest_neighbor")
def upsample_nearest(call: Call) -> Kernel:
    scale = [float(call.static("scale_factor_height", 1.0)), float(call.static("scale_factor_width", 1.0))]
    return Kernel(lambda x: F.interpolate(x, scale_factor=scale, mode="nearest"), ("x",), wide=True)


@operator("upsample_bilinear")
def upsample_bilinear(call: Call) -> Kernel:
    scale = [float(call.static("scale_factor_height", 1.0)), float(call.static("scale_factor_width", 1.0))]
    corners = bool(call.static("align_corners", True))
    return Kernel(
        lambda x: F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=corners), ("x",), wide=True
    )


@operator("pixel_shuffle")
def pixel_shuffle(call: Call) -> Kernel:
    factor = call.static("upscale_factor")
    return Kernel(lambda x: F.pixel_shuffle(x, factor), ("x",))
