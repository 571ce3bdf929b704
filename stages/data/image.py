"""From an image file or array to the encoder's input, exactly as preprocessing.json says, the same on every machine.

In this order: the photographer's rotation (EXIF) is applied; transparency is laid over white; grey becomes colour; the
image is made square by `aspect` and resized by Pillow's antialiased filter `resample`, bilinear or bicubic, in 8 bits;
then comes (x / 255 - mean) / std.

    stretch   resized to the square, whatever its shape
    crop      shortest edge resized to the square's, then the middle is cut out (CLIP's way)
    pad       laid in the middle of a square of the colour `mean`, then resized (LLaVA's way)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipelines.errors import StageError, nearest

ASPECTS = ("stretch", "crop", "pad")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(image: Path | NDArray[np.uint8] | Image.Image, settings: Mapping[str, Any]) -> NDArray[np.float32]:
    """image: a file, an array (H, W), (H, W, 3) or (H, W, 4) uint8, or a Pillow image -> (1, 3, S, S) float32.

    settings: image_size, mean [3], std [3], aspect, resample (bilinear if absent). Raises StageError for what is
    no image, and for an unknown aspect or filter.
    """
    size, mean, std = (settings[key] for key in ("image_size", "mean", "std"))
    resample = settings.get("resample", "bilinear")
    for key, value, choices in (("aspect", settings["aspect"], ASPECTS), ("resample", resample, tuple(FILTERS))):
        if value not in choices:
            raise StageError(
                f"preprocessing.json: {key} is {value!r}",
                hint=f"{nearest(value, choices)} Expected one of {', '.join(choices)}.",
            )
    square = _square(to_rgb(image), int(size), settings["aspect"], mean, FILTERS[resample])
    pixels = np.asarray(square, np.float32) / np.float32(255)
    normalised = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


def to_rgb(image: Path | NDArray[np.uint8] | Image.Image) -> Image.Image:
    """Upright, opaque, 8 bits a colour."""
    if isinstance(image, Path):
        try:
            with Image.open(image) as file:
                file.load()
                image = file
        except (OSError, ValueError, Image.DecompressionBombError) as cause:
            raise StageError(
                f"{image} cannot be read as an image: {cause}", hint="Expected PNG, JPEG, WebP or the like."
            ) from cause
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise StageError(
                f"an array {image.dtype} {image.shape} is no image",
                hint="Expected uint8 of shape (H, W), (H, W, 3) or (H, W, 4).",
            )
        image = Image.fromarray(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _square(image: Image.Image, size: int, aspect: str, mean: list[float], resample: Image.Resampling) -> Image.Image:
    width, height = image.size
    if aspect == "crop":
        short = min(width, height)
        image = _resize(image, width * size // short, height * size // short, resample)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        return image.crop((left, top, left + size, top + size))
    if aspect == "pad":
        long = max(width, height)
        colour = tuple(int(value * 255) for value in mean)
        canvas = Image.new("RGB", (long, long), colour)
        canvas.paste(image, ((long - width) // 2, (long - height) // 2))
        return _resize(canvas, size, size, resample)
    return _resize(image, size, size, resample)


def _resize(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), resample)
