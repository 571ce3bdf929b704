"""Writing files so that each is seen whole or not at all, and saying clearly why one could not be written."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.errors import StoreError

FULL = "free some disk space and build again; what was finished is kept"
CLOSED = "make the folder writable and build again"
IN_THE_WAY = "a file lies where a folder is needed: move it away and build again"
HINTS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EACCES: CLOSED,
    errno.EPERM: CLOSED,
    errno.EROFS: "the file system is read-only; build in a copy of the project that can be written",
    errno.EEXIST: IN_THE_WAY,
    errno.ENOTDIR: IN_THE_WAY,
    errno.EISDIR: "a folder lies where a file is needed: move it away and build again",
    errno.ENOENT: "something removed it during the build: build again",
    errno.EIO: "the disk fails: look at the system's log, and build elsewhere",
}


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is seen whole or not at all, a power cut included. Raises StoreError."""
    write_whole(path, lambda aside: Path(aside).write_bytes(data))


def write_whole(path: Path, fill: Callable[[str], object], mode: int | None = None) -> None:
    """Let `fill` write a file beside `path`, and rename it there once it is on the disk. Raises StoreError.

    The order is content, then name: a name never leads to content that a power cut has lost. The name itself may be
    lost with the last seconds' work, unless `sync_folder` follows.
    """
    with storing(path):
        aside = os.path.join(path.parent, f".{path.name}.{uuid.uuid4().hex}")
        try:
            try:
                fill(aside)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                fill(aside)
            descriptor = os.open(aside, os.O_RDONLY)
            try:
                if mode is not None:
                    os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk. Not every file system can, and those that cannot need not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into a StoreError that names `path`, which was to be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}", hint=HINTS.get(error.errno or 0, "")
        ) from error
