"""Writing files so that each is seen whole or not at all, and saying clearly why one could not be written."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pipelines.errors import StoreError, UnwritableError

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
FULL = "free some disk space and run it again; what was finished is kept"
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
    errno.EXDEV: "artifacts/ and .tapeout/ must lie on one file system: mount or link the whole project instead",
    errno.ENOENT: "if it was there when the build began, something removed it: put it back and build again",
    errno.EIO: "the disk fails: look at the system's log, and build elsewhere",
}

EVERYWHERE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV, errno.EIO)


def write_file(path: Path | str, data: bytes, sync: bool = True) -> None:
    """Write a file so that it is seen whole or not at all; after a power cut too, with `sync`. Raises StoreError."""
    write_whole(path, lambda file: file.write(data), sync=sync)


def write_where_it_differs(path: Path | str, data: bytes, sync: bool = True) -> None:
    """Write a file, unless it holds `data` already. Raises StoreError."""
    try:
        with open(path, "rb") as file:
            if file.read() == data:
                return
    except OSError:
        pass  # writing it will say why
    write_file(path, data, sync)


def write_whole(
    path: Path | str, fill: Callable[[IO[bytes]], object], mode: int | None = None, sync: bool = True
) -> None:
    """Let `fill` write a file beside `path`, and rename it there once it is on the disk. Raises StoreError.

    So a name never leads to content that a power cut has lost. The name itself may be lost with the last seconds' work;
    see pipelines/store.py for why that does no harm. mode: exactly so, whatever the umask.
    """
    folder, name = os.path.split(path)
    aside = f"{folder}/.{name}.{uuid.uuid4().hex}"
    with storing(path):
        try:
            try:
                descriptor = os.open(aside, NEW, 0o666)
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
                descriptor = os.open(aside, NEW, 0o666)
            with open(descriptor, "wb") as file:
                fill(file)
                file.flush()
                if mode is not None:
                    os.fchmod(descriptor, mode)
                if sync:
                    os.fsync(descriptor)
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise


@contextlib.contextmanager
def storing(path: Path | str) -> Iterator[None]:
    """Turn the file system's refusals into a StoreError that names `path`, which was to be written.

    It is an UnwritableError where other files would be refused too.
    """
    try:
        yield
    except OSError as error:
        kind = UnwritableError if error.errno in EVERYWHERE else StoreError
        raise kind(
            f"{path} cannot be written: {error.strerror or error}", hint=HINTS.get(error.errno or 0, "")
        ) from error
