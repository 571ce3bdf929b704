"""The image files of the conformance vectors: drawn by arithmetic, and written the same each time.

Every kind of file that a user may give and that decoders get wrong: few bits and many, transparency in all its forms,
interlacing, rotation by EXIF, extreme shapes, and files that are no images.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.conformance.png import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, PALETTE, png

ORIENTATION = 0x0112  # EXIF's tag
BIG_ENDIAN = bytes.fromhex("4d4d002a00000008000101120003000000010008000000000000")  # EXIF: orientation 8
SMOOTH = 2  # of 255: how far two right decoders of a JPEG may be apart, where every pixel has a colour of its own
SUBSAMPLED = 8  # where they must guess the colours between those that are stored


@dataclass(frozen=True)
class Picture:
    """A file. tolerance: of 255, how far a decoder's pixels may be from ours; 0: the format says which are right."""

    name: str
    note: str
    data: bytes
    tolerance: int = 0


def pictures() -> list[Picture]:
    """Return all images, in an order that stays."""
    return [*shapes(), *depths(), *transparent(), *turned(), *photographs()]


def no_images() -> list[Picture]:
    """Return files that no decoder may take for an image."""
    whole = png(pattern(24, 24), COLOUR)
    broken = bytearray(whole)
    broken[60] ^= 0x55  # within the compressed rows: the checksums tell
    return [
        Picture("empty.png", "no byte", b""),
        Picture("text.png", "text under an image's name", b"this is no image\n"),
        Picture("cut.png", "a PNG that ends in its middle", whole[: len(whole) // 2]),
        Picture("header.png", "a PNG's signature and nothing else", whole[:8]),
        Picture("damaged.png", "a PNG with a damaged byte in its rows", bytes(broken)),
        Picture("cut.jpg", "a JPEG that ends before its image does", jpeg(pattern(24, 24))[:200]),
    ]


def pattern(width: int, height: int, channels: int = 3, top: int = 255) -> NDArray[np.uint16]:
    """Return (H, W, C): ramps, a checkerboard and noise, from 0 to `top`. Integers alone, so equal on every machine."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    noise = (((x + 1) * 2654435761 ^ (y + 1) * 40503 ^ (c + 1) * 69069) >> 7) % 61
    board = ((x // 3 + y // 2 + c) % 2) * 97
    ramp = (x * (3 + c) + y * (7 - 2 * c)) % 157
    return ((noise + board + ramp) * top // (60 + 97 + 156)).astype(np.uint16)


def soft(width: int, height: int) -> NDArray[np.uint8]:
    """Return (H, W, 3) without hard edges, on which JPEG decoders agree: a plain ramp for each colour."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    colours = (x * 200 // width + 30, y * 200 // height + 30, (x + y) * 100 // (width + height) + 90)
    return np.stack(colours, axis=-1).astype(np.uint8)


def shapes() -> Iterator[Picture]:
    """Yield plain colour of all sizes."""
    for width, height in (
        (1, 1), (1, 2), (2, 1), (3, 5), (7, 96), (96, 7), (1, 4000), (4000, 1), (31, 17), (48, 48), (95, 97), (96, 96),
        (101, 67), (120, 40), (211, 13),
    ):  # fmt: skip
        yield Picture(f"rgb-{width}x{height}.png", "plain colour", png(pattern(width, height), COLOUR))
    yield Picture("interlaced.png", "Adam7", png(pattern(37, 29), COLOUR, interlaced=True))
    gamma = png(pattern(33, 21), COLOUR, chunks=((b"gAMA", (100_000).to_bytes(4, "big")),))
    yield Picture("gamma.png", "a gAMA chunk of 1.0, which changes nothing: no colour is managed", gamma)
    yield Picture(
        "interlaced-1x3.png", "Adam7, most of whose passes are empty", png(pattern(1, 3), COLOUR, interlaced=True)
    )


def depths() -> Iterator[Picture]:
    """Yield grey, and other than 8 bits a sample."""
    for bits in (1, 2, 4, 8):
        samples = pattern(45, 33, 1, (1 << bits) - 1)
        yield Picture(f"grey-{bits}.png", f"grey, {bits} bits", png(samples, GREY, bits))
    yield Picture("grey-16.png", "grey, 16 bits: v // 257", png(pattern(45, 33, 1, 65535), GREY, 16))
    yield Picture(
        "grey-16-interlaced.png", "the same, Adam7", png(pattern(45, 33, 1, 65535), GREY, 16, interlaced=True)
    )
    yield Picture("rgb-16.png", "colour, 16 bits: the high byte", png(pattern(45, 33, 3, 65535), COLOUR, 16))
    for bits in (1, 4, 8):
        indices, colours = pattern(45, 33, 1, (1 << bits) - 1), palette(1 << bits)
        yield Picture(
            f"palette-{bits}.png", f"palette, {bits} bits", png(indices, PALETTE, bits, chunks=((b"PLTE", colours),))
        )
    yield Picture("grey.jpg", "a grey JPEG", jpeg(soft(40, 30)[:, :, 0]), SMOOTH)


def transparent() -> Iterator[Picture]:
    """Yield what shows white through it."""
    colour, alpha = pattern(40, 30), pattern(40, 30, 1)
    for name, note, values in (
        ("partial", "alpha of all values", alpha),
        ("full", "alpha 255 everywhere", np.full_like(alpha, 255)),
        ("none", "alpha 0 everywhere: white, whatever colours lie below", np.zeros_like(alpha)),
    ):
        yield Picture(f"alpha-{name}.png", note, png(np.concatenate([colour, values], axis=2), COLOUR_ALPHA))
    every = np.arange(256, dtype=np.uint16)
    grid = np.broadcast_to(every[:, None, None], (256, 32, 1))
    reds = np.broadcast_to((every[::8])[None, :, None], (256, 32, 1))
    steps = np.concatenate([reds, 255 - reds, (reds * 7) % 256, grid], axis=2).astype(np.uint16)
    yield Picture("alpha-steps.png", "each alpha under 32 values: the rounding", png(steps, COLOUR_ALPHA))
    both = np.concatenate([pattern(40, 30, 1), alpha], axis=2)
    yield Picture("grey-alpha.png", "grey with alpha", png(both, GREY_ALPHA))
    wide = np.concatenate([pattern(20, 15, 3, 65535), pattern(20, 15, 1, 65535)], axis=2)
    yield Picture("alpha-16.png", "colour with alpha, 16 bits: the high bytes", png(wide, COLOUR_ALPHA, 16))
    yield Picture(
        "palette-alpha.png", "palette, the first 200 of its colours with an alpha",
        png(pattern(45, 33, 1), PALETTE, chunks=((b"PLTE", palette(256)), (b"tRNS", bytes(range(0, 200))))),
    )  # fmt: skip
    yield Picture(
        "grey-key.png", "grey, one value of which is transparent",
        png(pattern(45, 33, 1, 15), GREY, chunks=((b"tRNS", b"\x00\x07"),)),
    )  # fmt: skip
    key = pattern(20, 15)
    yield Picture(
        "rgb-key.png", "colour, one of which is transparent",
        png(key, COLOUR, chunks=((b"tRNS", key[3, 4].astype(">u2").tobytes()),)),
    )  # fmt: skip


def turned() -> Iterator[Picture]:
    """Yield each orientation of EXIF, 1 to 8, in PNG and in JPEG; 9 is none, and is not applied."""
    for orientation in (*range(1, 9), 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        note = f"EXIF orientation {orientation}"
        content = exif.tobytes().removeprefix(b"Exif\0\0")
        yield Picture(f"turned-{orientation}.png", note, png(pattern(29, 17), COLOUR, chunks=((b"eXIf", content),)))
        if orientation < 9:
            yield Picture(f"turned-{orientation}.jpg", note, jpeg(soft(40, 24), exif=exif.tobytes()), SMOOTH)
    other = png(pattern(29, 17), COLOUR, chunks=((b"eXIf", BIG_ENDIAN),))
    yield Picture("turned-big-endian.png", "EXIF orientation 8, big-endian", other)
    alpha = np.concatenate([pattern(21, 13), pattern(21, 13, 1)], axis=2)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    yield Picture("turned-alpha.png", "orientation 6 and alpha", png(alpha, COLOUR_ALPHA, chunks=((b"eXIf", content),)))


def photographs() -> Iterator[Picture]:
    """Yield JPEG as cameras and web sites write it, and WebP."""
    yield Picture("baseline.jpg", "baseline, all colours stored", jpeg(soft(64, 48)), SMOOTH)
    yield Picture("progressive.jpg", "progressive", jpeg(soft(64, 48), progressive=True), SMOOTH)
    yield Picture("odd.jpg", "no multiple of 8 pixels", jpeg(soft(61, 43)), SMOOTH)
    yield Picture("subsampled.jpg", "4:2:0", jpeg(soft(61, 43), subsampling=2), SUBSAMPLED)
    file = io.BytesIO()
    Image.fromarray(pattern(33, 25).astype(np.uint8)).save(file, "WEBP", lossless=True)
    yield Picture("lossless.webp", "WebP without loss", file.getvalue())


def palette(count: int) -> bytes:
    """Return `count` colours, three bytes each."""
    return pattern(count, 1).astype(np.uint8).tobytes()


def jpeg(samples: NDArray[np.unsignedinteger], **options: object) -> bytes:
    """Return a JPEG by Pillow, whose bytes may change with its version."""
    file = io.BytesIO()
    settings: dict[str, object] = {"quality": 92, "subsampling": 0, **options}
    Image.fromarray(samples.astype(np.uint8)).save(file, "JPEG", **settings)
    return file.getvalue()
