"""Inputs and outputs as the package describes them: arrays of fixed or flexible shapes, images, default values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stages.runtimes.coreml_reference.package import Package, ProgramError

_COLOURS = {10: "grayscale", 20: "RGB", 30: "BGR", 40: "grayscale"}  # FeatureTypes.proto: ImageFeatureType.ColorSpace
_ANY = -1


@dataclass(frozen=True)
class Feature:
    """An input or output. shape: -1 is any size. colour: of an image, else "". default: where it may be left out.

    shapes: those that are allowed, where they are listed. ranges: (least, most) of each axis, most -1 is no limit.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    colour: str = ""
    default: float | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()

    def describe(self) -> str:
        """`(1, 3, 24, 24) float16`, `(1, 1..128) int32`, `(1, 8) or (1, 16) float32`, `RGB image of 24 x 24`."""
        if self.shapes:
            text = " or ".join(map(str, self.shapes))
        elif self.ranges:
            text = ", ".join(_range(*limits) for limits in self.ranges)
            text = f"({text},)" if len(self.ranges) == 1 else f"({text})"
        else:
            text = str(tuple("any" if size == _ANY else size for size in self.shape)).replace("'", "")
        kind = f"{self.colour} image " if self.colour else ""
        return f"{kind}{text} {str(self.dtype).removeprefix('torch.')}"

    def example(self) -> tuple[int, ...]:
        """A shape that fits: the smallest."""
        if self.shapes:
            return self.shapes[0]
        least = [limits[0] for limits in self.ranges] or [1] * len(self.shape)
        return tuple(max(low, 1) if size == _ANY else size for size, low in zip(self.shape, least, strict=True))

    def tensor(self, value: Any) -> torch.Tensor:
        """What a user gave, as the program takes it. Raises ProgramError where it does not fit."""
        if self.colour:
            value = _pixels(self, value)
        try:
            tensor = (
                value
                if isinstance(value, torch.Tensor)
                else torch.from_numpy(np.require(np.asarray(value), requirements="W"))
            )
        except (TypeError, ValueError) as cause:
            raise ProgramError(f"input '{self.name}' cannot be made an array: {cause}") from cause
        shape = tuple(tensor.shape)
        if not self._allows(shape):
            raise ProgramError(f"input '{self.name}' has shape {shape}; it takes {self.describe()}")
        if tensor.is_floating_point() and not self.dtype.is_floating_point and not torch.equal(tensor, tensor.round()):
            raise ProgramError(f"input '{self.name}' holds fractions; it takes {self.describe()}")
        return tensor.to(self.dtype)

    def _allows(self, shape: tuple[int, ...]) -> bool:
        if self.shapes:
            return shape in self.shapes
        if len(shape) != len(self.shape):
            return False
        sizes = zip(shape, self.shape, strict=True)
        within = zip(shape, self.ranges or [(0, _ANY)] * len(shape), strict=True)
        return all(wanted in (_ANY, size) for size, wanted in sizes) and all(
            low <= size and high in (_ANY, max(size, high)) for size, (low, high) in within
        )

    def value(self, result: torch.Tensor) -> Any:
        """A result as a user gets it: an array, or a PIL image."""
        if not self.colour:
            return result.numpy()
        from PIL import Image

        pixels = result.float().round().clamp(0, 255).to(torch.uint8)[0]
        if self.colour == "grayscale":
            return Image.fromarray(pixels[0].numpy())
        pixels = pixels.flip(0) if self.colour == "BGR" else pixels
        return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def describe_features(
    package: Package, function: str, inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
) -> tuple[dict[str, Feature], dict[str, Feature]]:
    """The inputs (in the program's shapes and dtypes) and the image outputs of a function."""
    description = package.model.description
    own = next((each for each in description.functions if each.name == function), description)
    said = {feature.name: feature for feature in own.input}
    found = {name: _feature(name, said.get(name), shape, dtype) for name, (shape, dtype) in inputs.items()}
    images = {
        feature.name: Feature(feature.name, (), torch.uint8, _COLOURS.get(feature.type.imageType.colorSpace, "RGB"))
        for feature in own.output
        if feature.type.WhichOneof("Type") == "imageType"
    }
    return found, images


def _feature(name: str, said: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Feature:
    kind = said.type.WhichOneof("Type") if said is not None else None
    if kind == "imageType":
        return _image(name, said.type.imageType, shape, dtype)
    if kind != "multiArrayType":
        return Feature(name, shape, dtype)
    array = said.type.multiArrayType
    default = getattr(array, array.WhichOneof("defaultOptionalValue") or "", None) if said.type.isOptional else None
    shapes: Sequence[tuple[int, ...]] = ()
    ranges: Sequence[tuple[int, int]] = ()
    if array.WhichOneof("ShapeFlexibility") == "enumeratedShapes":
        shapes = [tuple(each.shape) for each in array.enumeratedShapes.shapes]
    elif array.WhichOneof("ShapeFlexibility") == "shapeRange":
        ranges = [(int(each.lowerBound), int(each.upperBound)) for each in array.shapeRange.sizeRanges]
    if len(ranges) != len(shape):
        ranges = ()
    return Feature(name, shape, dtype, default=default, shapes=tuple(shapes), ranges=tuple(ranges))


def _image(name: str, image: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Feature:
    before = shape[:2]
    shapes: Sequence[tuple[int, ...]] = ()
    ranges: Sequence[tuple[int, int]] = ()
    if image.WhichOneof("SizeFlexibility") == "enumeratedSizes":
        shapes = [(*before, int(size.height), int(size.width)) for size in image.enumeratedSizes.sizes]
    elif image.WhichOneof("SizeFlexibility") == "imageSizeRange":
        sides = image.imageSizeRange.heightRange, image.imageSizeRange.widthRange
        ranges = [(size, size) for size in before] + [(int(each.lowerBound), int(each.upperBound)) for each in sides]
    colour = _COLOURS.get(image.colorSpace, "RGB")
    return Feature(name, shape, dtype, colour, shapes=tuple(shapes), ranges=tuple(ranges))


def _pixels(feature: Feature, value: Any) -> Any:
    """A PIL image, or uint8 (H, W, 3) red first or (H, W), as (1, C, H, W) in the feature's order; others as given."""
    if hasattr(value, "convert"):
        value = np.asarray(value.convert("L" if feature.colour == "grayscale" else "RGB"))
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim not in (2, 3):
        return value
    if (value.ndim == 2) != (feature.colour == "grayscale"):
        raise ProgramError(f"input '{feature.name}' has shape {value.shape}; it takes a {feature.describe()}")
    if value.ndim == 2:
        return value[None, None]
    ordered = value[..., ::-1] if feature.colour == "BGR" else value
    return np.ascontiguousarray(ordered.transpose(2, 0, 1))[None]


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least}..{'' if most == _ANY else most}"
