"""Making a file of a bundle from an older one and a delta, a block at a time."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

import numpy as np
import zstandard

from pipelines.errors import StoreError, VerificationError
from pipelines.files import write_whole
from stages.release.deltas.delta_coding import Bytes, Kind, Stream, Unfit, decode
from stages.release.deltas.delta_format import (
    AGAIN,
    STREAM_WINDOW,
    Delta,
    WrongBaseError,
    damaged,
    frame,
    read_delta,
)


def apply_delta(delta: Path, old: Path, out: Path, *, expected_size: int, expected_sha256: str) -> None:
    """Write to `out` the file that the delta makes of `old`: expected_size bytes with that sha256, in hex, or nothing.

    The old file is read twice: to see that it is the right one, and to be built upon. Memory does not grow with the
    files. Raises VerificationError whatever is wrong with the delta, WrongBaseError (one of them) where it is for
    another file than `old`, StoreError where a file cannot be read or written.
    """
    with opened(delta) as file, opened(old) as base:
        said = read_delta(file, delta)
        if said.new_size != expected_size or said.new_sha256 != expected_sha256:
            raise VerificationError(
                f"{delta}: makes a file of {said.new_size} bytes with sha256 {said.new_sha256}; expected "
                f"{expected_size} bytes with {expected_sha256}",
                hint=AGAIN,
            )
        size, found = base.seek(0, os.SEEK_END), ""
        if size == said.old_size:
            base.seek(0)
            found = hashlib.file_digest(base, "sha256").hexdigest()
        if found != said.old_sha256:
            raise WrongBaseError(
                f"{delta}: starts from a file of {said.old_size} bytes with sha256 {said.old_sha256}; {old} has "
                f"{size} bytes" + (f" and sha256 {found}" if found else ""),
                hint=f"{AGAIN}, or the delta that starts from this one",
            )
        write_whole(out, lambda target: fill(target, said, file, delta, base))


def fill(target: IO[bytes], said: Delta, file: IO[bytes], where: Path, base: IO[bytes]) -> None:
    """Write all blocks. Raises VerificationError unless they have the sha256 that the delta says."""
    streams = Streams(said, file, where)
    digest = hashlib.sha256()
    blocks = said.blocks
    columns = (blocks.kind, blocks.length, blocks.old, blocks.first, blocks.second)
    for number, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        try:
            new = made(Kind(row[0]), *row[1:], streams, base)
        except Unfit as cause:
            raise damaged(where, f"block {number}: {cause}") from cause
        digest.update(new)
        target.write(new)
    if digest.hexdigest() != said.new_sha256:
        raise damaged(where, f"what it makes has sha256 {digest.hexdigest()}; expected {said.new_sha256}")


def made(
    kind: Kind, length: int, place: int, first: int, second: int, streams: Streams, base: IO[bytes]
) -> Bytes | bytes:
    """Return a new block (delta_format.py says what its numbers are)."""
    if kind is Kind.LITERAL:
        return streams.take(Stream.LITERAL, length)
    if kind is Kind.PATCH:
        data = streams.take(Stream.PATCHES, first).tobytes()
        return frame(data, length, streams.where, old_bytes(base, place, second).tobytes())
    return decode(kind, old_bytes(base, place, length), first, second, streams.take)


def old_bytes(base: IO[bytes], place: int, length: int) -> Bytes:
    base.seek(place)
    data = base.read(length)
    if len(data) != length:
        raise Unfit("the old file grew shorter while it was read")
    return np.frombuffer(data, np.uint8)


class Streams:
    """The delta's streams, each read on from where it was left."""

    def __init__(self, said: Delta, file: IO[bytes], where: Path) -> None:
        self.where = where
        self._parts = {stream: Part(file, *place) for stream, place in said.streams.items()}
        self._readers = {
            stream: part
            if stream is Stream.PATCHES
            else zstandard.ZstdDecompressor(max_window_size=1 << STREAM_WINDOW).stream_reader(part)
            for stream, part in self._parts.items()
        }

    def take(self, stream: Stream, count: int) -> Bytes:
        """Return the next bytes of a stream. Raises VerificationError where it has not so many."""
        data = b""
        if count and stream in self._readers:
            try:
                data = self._readers[stream].read(count)
            except zstandard.ZstdError as cause:
                raise damaged(self.where, f"its stream {stream.name.lower()}: {cause}") from cause
        if len(data) != count:
            raise damaged(self.where, f"its stream {stream.name.lower()} ends too early")
        return np.frombuffer(data, np.uint8)


class Part:
    """A part of a file, as a file that can be read to its end. It leaves the file's own position alone."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file, self._place, self._end = file.fileno(), start, start + length

    def read(self, count: int = -1) -> bytes:
        left = self._end - self._place
        data = os.pread(self._file, left if count < 0 else min(count, left), self._place)
        self._place += len(data)
        return data


def opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as cause:
        raise StoreError(f"{path} cannot be read: {cause.strerror or cause}", hint=AGAIN) from cause
