"""The difference between a file of a bundle and the same file of an older one, where that is worth its while.

Tensors are found in both (tensor_layout.py), and each is compared with its older self (delta_coding.py); texts and
graphs are compressed with the old text at hand. Whether a delta is used is decided here, for each file by itself.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import zstandard

from pipelines.files import storing, write_whole
from stages.release.deltas.delta_apply import apply_delta, opened
from stages.release.deltas.delta_coding import BLOCK, Bytes, Coded, Kind, Stream, encode
from stages.release.deltas.delta_format import (
    LARGEST,
    MOST_BLOCKS,
    PATCH_LEAST,
    PATCH_NEW,
    PATCH_OLD,
    PATCH_REACH,
    PATCH_WINDOW,
    STREAM_WINDOW,
    Blocks,
    Delta,
    size_of,
    write_delta,
)
from stages.release.deltas.tensor_layout import Element, Segment, segments
from stages.release.manifest import sha256_of

__all__ = ["apply_delta", "make_delta"]

WORTH = 0.4  # of the new file's size: no larger delta is made. It would save less than a place in the repository and a
# second download, should it fail, cost. Of weights that were quantized in other groups, a half would be left
LEVEL = 19  # of zstd
LARGE, LARGE_LEVEL = 64 << 20, 6  # a file of so many bytes, and its level: 19 would take minutes, and gain 2 %


def make_delta(
    old: Path, new: Path, out: Path, name: str, old_context: Path | None, new_context: Path | None
) -> int | None:
    """Write to `out` what makes `new` of `old`, and return its bytes; None, and no file, where the whole is better.

    name: the file's path in the bundle. contexts: folders of both bundles, where graphs say which tensors lie in the
    file; None where there is none, which makes a larger delta. The same files give the same bytes under one version of
    zstd. Raises StoreError where it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        base, source = stack.enter_context(opened(old)), stack.enter_context(opened(new))
        old_size, new_size = base.seek(0, os.SEEK_END), source.seek(0, os.SEEK_END)
        if not old_size or not new_size or max(old_size, new_size) > LARGEST:
            return None
        before = {segment.name: segment for segment in segments(old, name, old_context)}
        after = list(pieces(segments(new, name, new_context), before))
        if len(after) > MOST_BLOCKS:
            return None
        stack.enter_context(storing(out))
        out.parent.mkdir(parents=True, exist_ok=True)
        writer = Writer(stack, out.parent, new_size)
        for piece, older in after:
            writer.add(read(source, piece.offset, piece.length), older, piece.element, base, old_size)
            if writer.size > WORTH * new_size:
                return None
        data = writer.finished()
        delta = Delta(sha256_of(old), old_size, sha256_of(new), new_size, writer.blocks(), {})
        if size_of(delta, data) > WORTH * new_size:
            return None
        write_whole(out, lambda file: write_delta(file, delta, data))
    return out.stat().st_size


def pieces(new: list[Segment], before: dict[str, Segment]) -> Iterator[tuple[Segment, int]]:
    """Yield the new file's segments in pieces that fit a block, each with the offset of its older self, or -1.

    Opaque ones come in pieces that fit a patch, with the offset around which the old bytes lie.
    """
    for segment in new:
        older = before.get(segment.name)
        if older is not None and older.element is not segment.element:
            older = None
        same_size = older is not None and older.length == segment.length
        opaque = segment.element is Element.OPAQUE and not (same_size and segment.length > PATCH_NEW)
        element = Element.OPAQUE if opaque else segment.element or Element.BITS_8
        step = PATCH_NEW if opaque else BLOCK
        for place in range(0, segment.length, step):
            length = min(step, segment.length - place)
            paired = older is not None and (opaque or place + length <= older.length)
            start = older.offset + place if older is not None and paired else -1
            yield Segment(segment.name, segment.offset + place, length, element), start


class Writer:
    """Blocks and streams as they grow. Nothing of a file is held but the block at hand."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, new_size: int) -> None:
        self._stack, self._folder = stack, folder
        self._level = LARGE_LEVEL if new_size >= LARGE else LEVEL
        self._settings = settings(self._level, new_size, STREAM_WINDOW)
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._files: dict[Stream, IO[bytes]] = {}
        self._compressors: dict[Stream, zstandard.ZstdCompressionWriter] = {}
        self._end = 0  # in the old file, of what the last block read

    @property
    def size(self) -> int:
        """Bytes of all streams until now; what the compressors hold back is not in it."""
        return sum(file.tell() for file in self._files.values())

    def add(self, new: Bytes, older: int, element: Element, base: IO[bytes], old_size: int) -> None:
        """Add the next block. older: where its older self lies in the old file, `base`; -1 where there is none."""
        fits = older >= 0 and older + len(new) <= old_size
        if element is not Element.OPAQUE:
            self._put(encode(read(base, older, len(new)) if fits else None, new, element), len(new), older)
            return
        reach = min(PATCH_OLD, PATCH_REACH * len(new) + PATCH_LEAST)
        start = max(0, min(older + len(new) // 2 - reach // 2, old_size - reach))
        length = min(reach, old_size - start)
        parts = list(self._in_blocks(new, older if fits else -1, base))
        blocks = sum(coded.size for coded, _, _ in parts)
        data = patched(new.tobytes(), read(base, start, length).tobytes(), self._level) if blocks else b""
        if blocks <= len(data):
            for part in parts:
                self._put(*part)
            return
        self._row(Kind.PATCH, len(new), start, len(data), length)
        self._write(Stream.PATCHES, data)

    def _in_blocks(self, new: Bytes, older: int, base: IO[bytes]) -> Iterator[tuple[Coded, int, int]]:
        """Yield a piece's blocks, as bytes that are compared with those at `older`: coding, length, older place."""
        for place in range(0, len(new), BLOCK):
            part = new[place : place + BLOCK]
            old = read(base, older + place, len(part)) if older >= 0 else None
            yield encode(old, part, Element.BITS_8), len(part), older + place

    def _put(self, coded: Coded, length: int, older: int) -> None:
        for stream, data in coded.parts.items():
            self._write(stream, data)
        self._row(coded.kind, length, older, coded.gaps, coded.rare)

    def _row(self, kind: Kind, length: int, old: int, first: int, second: int) -> None:
        place = self._end if kind is Kind.LITERAL else old
        self._rows.append((kind, length, place, first, second))
        self._end = place + (second if kind is Kind.PATCH else length)

    def _write(self, stream: Stream, data: bytes) -> None:
        if not data:
            return
        if stream not in self._files:
            file = self._files[stream] = self._stack.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
            if stream is not Stream.PATCHES:
                compressor = zstandard.ZstdCompressor(compression_params=self._settings)
                self._compressors[stream] = compressor.stream_writer(file, closefd=False)
        (self._compressors.get(stream) or self._files[stream]).write(data)

    def finished(self) -> dict[Stream, IO[bytes]]:
        """Return the streams, compressed to their ends."""
        for compressor in self._compressors.values():
            compressor.close()
        return self._files

    def blocks(self) -> Blocks:
        columns = np.array(self._rows, np.int64).reshape(-1, 5).T
        return Blocks(columns[0].astype(np.uint8), *columns[1:])


def patched(new: bytes, old: bytes, level: int) -> bytes:
    """Return `new` as a zstd frame that refers to `old`."""
    held = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    chosen = settings(level, len(new) + len(old), PATCH_WINDOW)
    return zstandard.ZstdCompressor(dict_data=held, compression_params=chosen).compress(new)


def settings(level: int, size: int, window: int) -> zstandard.ZstdCompressionParameters:
    """Return zstd's settings for at most `size` bytes. window: log2 of the bytes that it may look back over."""
    log = min(window, max(10, size.bit_length()))
    return zstandard.ZstdCompressionParameters.from_level(level, source_size=size, window_log=log)


def read(file: IO[bytes], offset: int, length: int) -> Bytes:
    return np.frombuffer(os.pread(file.fileno(), length, offset), np.uint8)
