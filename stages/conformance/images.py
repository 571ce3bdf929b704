"""image -> pixels -> tensor: the cases of the conformance vectors, by stages/data/image.py."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.conformance.pictures import Picture, no_images, pictures
from stages.conformance.png import COLOUR, png
from stages.data.image import preprocess, to_rgb

HALF, ZERO = ([0.5] * 3, [0.5] * 3), ([0.0] * 3, [1.0] * 3)  # mean, std
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SETTINGS = (
    (96, "stretch", "bilinear", HALF),
    (96, "crop", "bicubic", CLIP),
    (64, "pad", "bicubic", CLIP),
    (48, "stretch", "bicubic", ZERO),
    (33, "pad", "bilinear", HALF),
    (224, "crop", "bilinear", ZERO),
)
ALL = ("rgb-1x1.png", "rgb-31x17.png", "rgb-96x96.png", "rgb-101x67.png", "rgb-1x4000.png", "alpha-partial.png")
LONG = 64  # pixels of the shorter edge: above, a crop of a very long image is a long computation, and no other one


def write_images(folder: Path) -> list[dict[str, Any]]:
    """Write the files into folder/images; return the entries of "images" in vectors.json.

    Each image has the bundle's usual settings and another of SETTINGS in turn; those of ALL have all of them.
    """
    entries: list[dict[str, Any]] = []
    (folder / "images").mkdir()
    for number, picture in enumerate(pictures()):
        file = f"images/{picture.name}"
        (folder / file).write_bytes(picture.data)
        pixels = to_rgb(Image.open(io.BytesIO(picture.data)))
        described = {"width": pixels.width, "height": pixels.height, "sha256": sha256(np.asarray(pixels).tobytes())}
        if picture.tolerance:
            described["file"] = f"images/{picture.name}.png"
            (folder / described["file"]).write_bytes(png(np.asarray(pixels), COLOUR))
        for settings in settings_of(picture, pixels, number):
            tensor = preprocess(pixels, settings)
            entries.append(
                {
                    "file": file,
                    "note": picture.note,
                    "settings": settings,
                    "pixels": described,
                    "tensor": {"shape": list(tensor.shape), "sha256": sha256(tensor.astype("<f4").tobytes())},
                    "tolerance": picture.tolerance,
                }
            )
    for picture in no_images():
        file = f"images/{picture.name}"
        (folder / file).write_bytes(picture.data)
        entries.append({"file": file, "note": picture.note, "error": "image"})
    return entries


def settings_of(picture: Picture, pixels: Image.Image, number: int) -> list[dict[str, Any]]:
    chosen = range(len(SETTINGS)) if picture.name in ALL else sorted({0, 1 + number % (len(SETTINGS) - 1)})
    found = [settings(*SETTINGS[index]) for index in chosen]
    narrow = max(pixels.size) > LONG * min(pixels.size)
    return [each for each in found if not (narrow and each["aspect"] == "crop" and each["image_size"] > LONG)]


def settings(size: int, aspect: str, resample: str, colours: tuple[list[float], list[float]]) -> dict[str, Any]:
    mean, std = colours
    return {"image_size": size, "aspect": aspect, "resample": resample, "mean": mean, "std": std}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
