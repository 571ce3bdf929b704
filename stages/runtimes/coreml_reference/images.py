"""Rules of the operators that resample, crop and rearrange the last two axes of images."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from stages.runtimes.coreml_reference.operators import Call, Kernel, operator
from stages.runtimes.coreml_reference.package import ProgramError

_GRIDS = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


@operator("upsample_nearest_neighbor")
def upsample_nearest(call: Call) -> Kernel:
    scale = _scale(call)

    def function(x: torch.Tensor) -> torch.Tensor:
        for axis, factor in zip((-2, -1), scale, strict=True):
            x = _nearest(x, axis, math.floor(x.shape[axis] * factor))
        return x

    return Kernel(function, ("x",))


@operator("resize_nearest_neighbor")
def resize_nearest(call: Call) -> Kernel:
    sizes = call.static("target_size_height"), call.static("target_size_width")
    return Kernel(lambda x: _nearest(_nearest(x, -2, sizes[0]), -1, sizes[1]), ("x",))


@operator("upsample_bilinear")
def upsample_bilinear(call: Call) -> Kernel:
    scale = _scale(call)
    corners = bool(call.static("align_corners", True))
    centres = bool(call.static("half_pixel_centers", not corners))
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS" if centres else "DEFAULT"

    def function(x: torch.Tensor) -> torch.Tensor:
        for axis, factor in zip((-2, -1), scale, strict=True):
            x = _linear(x, axis, math.floor(x.shape[axis] * factor), mode)
        return x

    return Kernel(function, ("x",), wide=True)


@operator("resize_bilinear")
def resize_bilinear(call: Call) -> Kernel:
    sizes = call.static("target_size_height", 1), call.static("target_size_width", 1)
    mode = _grid(call, "sampling_mode")
    return Kernel(lambda x: _linear(_linear(x, -2, sizes[0], mode), -1, sizes[1], mode), ("x",), wide=True)


@operator("resize")
def resize(call: Call) -> Kernel:
    """iOS 17's, to a shape that the program computes: the last axes of x get the sizes in `shape`."""
    kind, mode = call.static("resized_dims", None), _grid(call, "sampling_mode")
    nearest = call.static("interpolation_mode", "LINEAR") != "LINEAR"
    if kind is not None:
        raise ProgramError(f"operation '{call.name}' (resize): resized_dims is not supported")

    def function(x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
        for axis, size in zip(range(-len(shape), 0), shape.tolist(), strict=True):
            size = size or x.shape[axis]
            x = _nearest(x, axis, size) if nearest else _linear(x, axis, size, mode)
        return x

    return Kernel(function, ("x", "shape"), wide=True)


def _scale(call: Call) -> list[float]:
    return [float(call.static(f"scale_factor_{side}", 1.0)) for side in ("height", "width")]


def _grid(call: Call, argument: str) -> str:
    mode: str = call.static(argument, "DEFAULT")
    if mode not in _GRIDS:
        raise ProgramError(f"operation '{call.name}' ({call.type}): unknown {argument} '{mode}'")
    return mode


def _nearest(x: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    if size == x.shape[axis]:
        return x
    return x.index_select(axis, (torch.arange(size) * x.shape[axis]).div(size, rounding_mode="floor"))


def _linear(x: torch.Tensor, axis: int, size: int, mode: str) -> torch.Tensor:
    """Linear interpolation along an axis, at the grid points of resize_bilinear's sampling modes."""
    before = x.shape[axis]
    if size == before and mode != "OFFSET_CORNERS":
        return x
    places = torch.tensor(_points(before, size, mode), dtype=torch.float32).clamp(0, before - 1)
    low = places.floor().long()
    shape = [1] * x.dim()
    shape[axis] = size
    share = (places - low).reshape(shape)
    first = x.index_select(axis, low)
    return first + share * (x.index_select(axis, (low + 1).clamp(max=before - 1)) - first)


def _points(before: int, after: int, mode: str) -> Sequence[float]:
    if mode == "OFFSET_CORNERS":
        delta = max(1, before - 1) / after
        return [0.5 * delta + i * delta for i in range(after)]
    if mode == "UNALIGN_CORNERS":
        return [(i + 0.5) * before / after - 0.5 for i in range(after)]
    if mode == "DEFAULT":
        return [i * before / after for i in range(after)]
    if after == 1:
        return [(before - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0]
    return [i * (before - 1) / (after - 1) for i in range(after)]


@operator("resample")
def resample(call: Call) -> Kernel:
    """x (B, C, H, W) at coordinates (B, H', W', 2), each x first."""
    padding = call.static("padding_mode")
    modes = {"constant": "zeros", "border": "border", "reflection": "reflection"}
    corners, kind = bool(call.static("align_corners")), call.static("coordinates_mode")
    plain = padding != "constant" or call.static("padding_value") == 0
    if padding not in modes or not plain or kind not in ("normalized_minus_one_to_one", "normalized_zero_to_one"):
        raise ProgramError(f"operation '{call.name}' (resample): {padding} padding of {kind} is not supported")
    sampling, shift = call.static("sampling_mode"), kind == "normalized_zero_to_one"

    def function(x: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        grid = 2 * coordinates.float() - 1 if shift else coordinates.float()
        return F.grid_sample(x, grid, sampling, modes[padding], corners)

    return Kernel(function, ("x", "coordinates"), wide=True)


@operator("crop")
def crop(call: Call) -> Kernel:
    (top, bottom), (left, right) = call.static("crop_height"), call.static("crop_width")

    def function(x: torch.Tensor) -> torch.Tensor:
        return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]

    return Kernel(function, ("x",), view=True)


@operator("pixel_shuffle")
def pixel_shuffle(call: Call) -> Kernel:
    factor = call.static("upscale_factor")
    return Kernel(lambda x: F.pixel_shuffle(x, factor), ("x",))


@operator("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Kernel:
    factor = int(call.static("downscale_factor"))
    return Kernel(lambda x: F.pixel_unshuffle(x, factor), ("x",))


@operator("depth_to_space")
def depth_to_space(call: Call) -> Kernel:
    """The channels hold the place in the block first."""
    size = call.static("block_size")

    def function(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, size, size, c // size**2, h, w)
        return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // size**2, h * size, w * size)

    return Kernel(function, ("x",))


@operator("space_to_depth")
def space_to_depth(call: Call) -> Kernel:
    size = call.static("block_size")

    def function(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // size, size, w // size, size)
        return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * size**2, h // size, w // size)

    return Kernel(function, ("x",))


@operator("space_to_batch")
def space_to_batch(call: Call) -> Kernel:
    (rows, columns), ((top, bottom), (left, right)) = call.static("block_shape"), call.static("paddings")

    def function(x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (left, right, top, bottom))
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // rows, rows, w // columns, columns)
        return blocks.permute(3, 5, 0, 1, 2, 4).reshape(n * rows * columns, c, h // rows, w // columns)

    return Kernel(function, ("x",))


@operator("batch_to_space")
def batch_to_space(call: Call) -> Kernel:
    (rows, columns), ((top, bottom), (left, right)) = call.static("block_shape"), call.static("crops")

    def function(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(rows, columns, n // (rows * columns), c, h, w).permute(2, 3, 4, 0, 5, 1)
        whole = blocks.reshape(n // (rows * columns), c, h * rows, w * columns)
        return whole[..., top : h * rows - bottom, left : w * columns - right]

    return Kernel(function, ("x",))
