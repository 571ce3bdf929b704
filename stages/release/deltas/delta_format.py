"""A delta's file: how one file of a bundle is made from the same file of an older one.

    header      magic, version, count of streams, count of blocks; of the old and of the new file: sha256 and size;
                bytes of the table
    streams     for each: which (delta_coding.Stream), bytes
    table       the blocks, in the order of the new file, column by column; a zstd frame
    data        the streams, one behind the other, to the end of the file: zstd frames

All numbers are little end first. A block's columns: kind (u8), length in bytes (u32), from where the old bytes that it
needs are counted (i64: from the end of those of the block before), and two more (u32): for a sparse one the bytes of
its gaps and of its rare gaps, for a patch the bytes of its frame and the length of its old bytes.

A delta comes from anybody: all that is read here is held against bounds, and what does not fit is a VerificationError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import zstandard
from numpy.typing import NDArray

from pipelines.errors import VerificationError
from stages.release.deltas.delta_coding import BLOCK, Kind, Stream

MAGIC, VERSION = b"TAPDELTA", 1
HEADER, STREAM = struct.Struct("<8sHHI32sQ32sQI"), struct.Struct("<BQ")
COLUMNS = (np.dtype("<u1"), np.dtype("<u4"), np.dtype("<i8"), np.dtype("<u4"), np.dtype("<u4"))
ROW = sum(column.itemsize for column in COLUMNS)
MOST_BLOCKS = 1 << 17
LARGEST = 1 << 42  # bytes of a file
STREAM_WINDOW, PATCH_WINDOW = 20, 24  # log2 of the bytes that zstd looks back over
PATCH_NEW, PATCH_OLD = 1 << 22, 1 << 23  # bytes that one patch makes, and looks at, at most
PATCH_REACH, PATCH_LEAST = 32, 1 << 14  # and a small one looks at no more than so many a byte of its own, and these
AGAIN = "take the whole file instead"


class WrongBaseError(VerificationError):
    """A delta does not start from the file that is there. The whole file helps, or the delta for the one that is."""


@dataclass(frozen=True)
class Blocks:
    """The table's columns; `old` counts from the old file's first byte."""

    kind: NDArray[np.uint8]
    length: NDArray[np.int64]
    old: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]


@dataclass(frozen=True)
class Delta:
    """An opened delta. Digests are sha256 in hex; streams: {which: (offset, bytes) in the delta's file}."""

    old_sha256: str
    old_size: int
    new_sha256: str
    new_size: int
    blocks: Blocks
    streams: dict[Stream, tuple[int, int]]


def write_delta(file: IO[bytes], delta: Delta, data: dict[Stream, IO[bytes]]) -> None:
    """Write a delta. data: each stream's bytes, compressed; delta.streams need not say where they lie."""
    table = table_of(delta.blocks)
    old, new = bytes.fromhex(delta.old_sha256), bytes.fromhex(delta.new_sha256)
    count = len(delta.blocks.kind)
    file.write(HEADER.pack(MAGIC, VERSION, len(data), count, old, delta.old_size, new, delta.new_size, len(table)))
    for stream in sorted(data):
        file.write(STREAM.pack(stream, data[stream].seek(0, 2)))
    file.write(table)
    for stream in sorted(data):
        data[stream].seek(0)
        while piece := data[stream].read(BLOCK):
            file.write(piece)


def size_of(delta: Delta, data: dict[Stream, IO[bytes]]) -> int:
    """Return the bytes that write_delta will write."""
    streams = sum(STREAM.size + stream.seek(0, 2) for stream in data.values())
    return HEADER.size + len(table_of(delta.blocks)) + streams


def table_of(blocks: Blocks) -> bytes:
    jumps = np.diff(blocks.old, prepend=0)
    reads = np.where(blocks.kind == Kind.PATCH, blocks.second, blocks.length)
    jumps[1:] -= reads[:-1]
    columns = (blocks.kind, blocks.length, jumps, blocks.first, blocks.second)
    raw = b"".join(column.astype(kind).tobytes() for column, kind in zip(columns, COLUMNS, strict=True))
    return zstandard.ZstdCompressor(level=19).compress(raw)


def read_delta(file: IO[bytes], where: Path) -> Delta:
    """Return what the delta says, all of it within bounds. where: names it in messages. Raises VerificationError."""
    size = file.seek(0, 2)
    file.seek(0)
    raw = file.read(HEADER.size)
    if len(raw) < HEADER.size or not raw.startswith(MAGIC):
        raise damaged(where, "it does not begin as a delta does")
    _, version, stream_count, count, old, old_size, new, new_size, table_size = HEADER.unpack(raw)
    if version != VERSION:
        raise VerificationError(
            f"{where}: a delta of format {version}; this is version {VERSION}",
            hint=f"update tapeout, or {AGAIN}",
        )
    if max(old_size, new_size) > LARGEST or count > MOST_BLOCKS or table_size > ROW * count + 1024:
        raise damaged(where, f"{count} blocks in {table_size} bytes, of files of {old_size} and {new_size} bytes")
    streams, start = read_streams(file, stream_count, where), file.tell() + table_size
    places: dict[Stream, tuple[int, int]] = {}
    for stream, length in streams.items():
        places[stream] = (start, length)
        start += length
    if start != size:
        raise damaged(where, f"it has {size} bytes, and says {start}")
    blocks = read_blocks(file.read(table_size), count, where)
    check_blocks(blocks, old_size, new_size, where)
    return Delta(old.hex(), old_size, new.hex(), new_size, blocks, places)


def read_streams(file: IO[bytes], count: int, where: Path) -> dict[Stream, int]:
    found: dict[Stream, int] = {}
    if count > len(Stream):
        raise damaged(where, f"{count} streams; there are {len(Stream)}")
    for _ in range(count):
        raw = file.read(STREAM.size)
        if len(raw) < STREAM.size:
            raise damaged(where, "it ends in its list of streams")
        number, length = STREAM.unpack(raw)
        if number not in list(Stream) or number in found or length > LARGEST:
            raise damaged(where, f"a stream {number} of {length} bytes")
        found[Stream(number)] = length
    return found


def read_blocks(table: bytes, count: int, where: Path) -> Blocks:
    raw = frame(table, ROW * count, where)
    columns, place = [], 0
    for column in COLUMNS:
        columns.append(np.frombuffer(raw, column, count, place))
        place += column.itemsize * count
    kind, length, jumps, first, second = columns
    if count and int(np.abs(jumps >> 1).max()) > LARGEST:  # halved: the lowest number has no opposite
        raise damaged(where, "a block's old bytes lie outside of any file")
    reads = np.where(kind == Kind.PATCH, second, length).astype(np.int64)
    old = np.cumsum(jumps + np.concatenate([[0], reads[:-1]]), dtype=np.int64)
    return Blocks(kind, length.astype(np.int64), old, first.astype(np.int64), second.astype(np.int64))


def check_blocks(blocks: Blocks, old_size: int, new_size: int, where: Path) -> None:
    """Raise VerificationError unless the blocks make exactly new_size bytes, out of what lies in the old file."""
    kind, length = blocks.kind, blocks.length
    patch, literal = kind == Kind.PATCH, kind == Kind.LITERAL
    reads = np.where(patch, blocks.second, np.where(literal, 0, length))
    sparse = (kind == Kind.SPARSE_4) | (kind == Kind.SPARSE_8)
    elements = np.where(kind == Kind.SPARSE_4, 2 * length, length)
    wrong = (
        (kind > max(Kind))
        | (length < 1)
        | (length > np.where(patch, PATCH_NEW, BLOCK))
        | (patch & (blocks.second > np.minimum(PATCH_OLD, PATCH_REACH * length + PATCH_LEAST)))
        | (~literal & ((blocks.old < 0) | (blocks.old + reads > old_size)))
        | (sparse & ((blocks.first > elements) | (blocks.second > blocks.first)))
        | (patch & (blocks.first > 2 * PATCH_NEW))
    )
    if wrong.any():
        raise damaged(where, f"block {int(np.flatnonzero(wrong)[0])} of {len(kind)} is out of its bounds")
    if int(length.sum()) != new_size:
        raise damaged(where, f"its blocks make {int(length.sum())} bytes, and it says {new_size}")


def frame(data: bytes, size: int, where: Path, dictionary: bytes | None = None) -> bytes:
    """Return what a whole zstd frame holds, which must be `size` bytes. Raises VerificationError."""
    held = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    try:
        said = zstandard.get_frame_parameters(data)
        if said.content_size != size or said.window_size > 1 << PATCH_WINDOW:
            raise damaged(where, f"a frame of {said.content_size} bytes where {size} belong")
        found = zstandard.ZstdDecompressor(dict_data=held).decompress(data, max_output_size=size) if size else b""
    except zstandard.ZstdError as cause:
        raise damaged(where, str(cause)) from cause
    if len(found) != size:
        raise damaged(where, f"a frame of {len(found)} bytes where {size} belong")
    return found


def damaged(where: Path, what: str) -> VerificationError:
    return VerificationError(f"{where}: a damaged delta: {what}", hint=AGAIN)
