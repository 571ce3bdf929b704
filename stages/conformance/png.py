"""A PNG writer for what Pillow cannot write: interlaced files, 16 bits a colour, grey of 1 to 4 bits, eXIf, tRNS.

The conformance vectors hold such files, and a decoder that reads none of them right is found out. After
https://www.w3.org/TR/png-3/. Bytes follow from the arguments and from zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png(
    samples: NDArray[np.unsignedinteger],
    colour: int,
    bits: int = 8,
    *,
    interlaced: bool = False,
    chunks: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """samples (H, W, C) unsigned, each below 2 ** bits -> the file. colour: PNG's colour type, which has C channels.

    chunks: others before the image data, such as (b"PLTE", ...) and (b"eXIf", ...), in the order of the file.
    """
    height, width, _ = samples.shape
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    steps = PASSES if interlaced else ((0, 0, 1, 1),)
    data = b"".join(filtered(samples[top::down, left::right], bits) for left, top, right, down in steps)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data, 9)), (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(name, content) for name, content in parts)


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk: length, name, content, CRC-32 of the last two."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def filtered(samples: NDArray[np.unsignedinteger], bits: int) -> bytes:
    """Return the rows of one pass, each after its filter's number: the five filters in turn, so that all are read.

    Where several samples share a byte, and for palettes, filters gain nothing; they are applied all the same.
    """
    height, width, channels = samples.shape
    if not height or not width:
        return b""
    step = max(1, channels * bits // 8)  # from a byte to the one on its left
    before = np.zeros(len(packed(samples[0], bits)), np.uint8)
    return b"".join(rows(samples, bits, step, before))


def rows(samples: NDArray[np.unsignedinteger], bits: int, step: int, before: NDArray[np.uint8]) -> Iterator[bytes]:
    for number, row in enumerate(samples):
        now = np.frombuffer(packed(row, bits), np.uint8)
        left = np.concatenate([np.zeros(step, np.uint8), now])[: len(now)]
        corner = np.concatenate([np.zeros(step, np.uint8), before])[: len(now)]
        kind = number % 5
        guess = (
            np.zeros_like(now), left, before, ((left.astype(int) + before) // 2).astype(np.uint8),
            paeth(left, before, corner),
        )[kind]  # fmt: skip
        yield bytes([kind]) + (now - guess).tobytes()
        before = now


def packed(row: NDArray[np.unsignedinteger], bits: int) -> bytes:
    """Return a row's samples (W, C) in bytes: big-endian, or several to a byte, the first in the highest bits."""
    values = row.ravel()
    if bits == 16:
        return values.astype(">u2").tobytes()
    if bits == 8:
        return values.astype(np.uint8).tobytes()
    single = (values[:, None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(single.astype(np.uint8).ravel()).tobytes()


def paeth(left: NDArray[np.uint8], above: NDArray[np.uint8], corner: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return Paeth's guess: whichever of the three is nearest to left + above - corner; ties in this order."""
    a, b, c = left.astype(int), above.astype(int), corner.astype(int)
    to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    nearest = np.where((to_a <= to_b) & (to_a <= to_c), a, np.where(to_b <= to_c, b, c))
    return nearest.astype(np.uint8)
