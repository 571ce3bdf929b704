"""The arithmetic of mobile/spec/README.md, "Image", word for word: what an SDK without Pillow computes."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}


def over_white(colour: int, alpha: int) -> int:
    """8 bits of a colour and its alpha -> the colour over white."""
    t = 128 * (alpha * colour + (255 - alpha) * 255) + 16384
    return ((t >> 8) + t) >> 15


def weight(x: float, resample: str) -> float:
    """The filter at a distance of x."""
    x = abs(x)
    if resample == "bilinear":
        return 1 - x if x < 1 else 0.0
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


def taps(before: int, after: int, resample: str) -> list[tuple[int, list[int]]]:
    """For each place of the resized line, the first source place and the integer weights from there on."""
    scale = before / after
    stretch = max(scale, 1.0)
    reach = SUPPORT[resample] * stretch
    found = []
    for place in range(after):
        centre = (place + 0.5) * scale
        first = max(0, math.trunc(centre - reach + 0.5))
        end = min(before, math.trunc(centre + reach + 0.5))
        weights = [weight((x - centre + 0.5) * (1 / stretch), resample) for x in range(first, end)]
        total = 0.0
        for each in weights:
            total += each
        scaled = [(each / total if total else each) * (1 << 22) for each in weights]
        found.append((first, [math.trunc(each - 0.5) if each < 0 else math.trunc(each + 0.5) for each in scaled]))
    return found


def along(pixels: NDArray[np.uint8], after: int, resample: str) -> NDArray[np.uint8]:
    """(N, M, 3) uint8 -> (after, M, 3) uint8: one pass, over the first axis."""
    if len(pixels) == after:
        return pixels
    lines = []
    for first, weights in taps(len(pixels), after, resample):
        sums = np.full(pixels.shape[1:], 1 << 21, np.int64)
        for number, each in enumerate(weights):
            sums += pixels[first + number].astype(np.int64) * each
        lines.append(np.clip(sums >> 22, 0, 255).astype(np.uint8))
    return np.stack(lines)


def resized(pixels: NDArray[np.uint8], width: int, height: int, resample: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (height, width, 3) uint8: first across, then down; the other way where that is said to be."""
    before = pixels.shape[0]
    if height < before and before - height > 2 * (pixels.shape[1] - width):
        return across(along(pixels, height, resample), width, resample)
    return along(across(pixels, width, resample), height, resample)


def across(pixels: NDArray[np.uint8], width: int, resample: str) -> NDArray[np.uint8]:
    return along(pixels.transpose(1, 0, 2), width, resample).transpose(1, 0, 2)


def tensor(pixels: NDArray[np.uint8], settings: dict[str, Any]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (1, 3, S, S) float32."""
    height, width, _ = pixels.shape
    size, resample = settings["image_size"], settings["resample"]
    if settings["aspect"] == "crop":
        short = min(width, height)
        pixels = resized(pixels, width * size // short, height * size // short, resample)
        top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        pixels = pixels[top : top + size, left : left + size]
    elif settings["aspect"] == "pad":
        long = max(width, height)
        canvas = np.empty((long, long, 3), np.uint8)
        canvas[:] = [math.trunc(each * 255) for each in settings["mean"]]
        top, left = (long - height) // 2, (long - width) // 2
        canvas[top : top + height, left : left + width] = pixels
        pixels = resized(canvas, size, size, resample)
    else:
        pixels = resized(pixels, size, size, resample)
    mean, std = (np.asarray(settings[name], np.float32) for name in ("mean", "std"))
    return ((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
