"""A bundle as one file: DEVICE.tar, the same bytes from any folder, user, umask and time.

POSIX ustar, uncompressed, so that no compressor's version is in the bytes: manifest.json, then the manifest's files
sorted by path. An archive may come from anybody: what is read of it is bounded by its own manifest, every header must
be exactly the one that is expected there (ustar.py), and nothing is hashed, let alone written, before all of them are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.errors import ConfigError, VerificationError
from pipelines.files import storing, write_whole
from stages.release.bundles.contents import each_of
from stages.release.bundles.folder import opened_folder
from stages.release.bundles.ustar import BLOCK, END, header, number, padding, refusal
from stages.release.manifest import AGAIN, MAXIMUM, NAME, File, Manifest, parse

CHUNK = 1 << 20  # bytes
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PK": "zip",
    b"7z\xbc\xaf": "7-Zip",
    b"\x04\x22\x4d\x18": "lz4",
}


def pack(folder: Path, archive: Path) -> str:
    """Write a bundle's folder as an archive; return the archive's sha256.

    Raises VerificationError for a folder that is not as its manifest says, ConfigError for what ustar cannot hold,
    StoreError.
    """
    bundle = opened_folder(folder)
    bundle.check_listing()
    whole = hashlib.sha256()

    def fill(write: Callable[[bytes | memoryview], object]) -> None:
        def put(data: bytes | memoryview) -> None:
            whole.update(data)
            write(data)

        put(header(NAME, len(bundle.manifest.data)))
        put(bundle.manifest.data)
        put(bytes(padding(len(bundle.manifest.data))))
        for file in bundle.manifest.files:
            put(header(file.path, file.size))
            for piece in bundle.chunks(file):
                put(piece)
            put(bytes(padding(file.size)))
        put(END)

    write_whole(archive, lambda file: fill(file.write))
    return whole.hexdigest()


class Archive:
    """An open archive whose headers are all as its manifest says. Its files are read by `chunks`, in any order."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        self.manifest, self.places = read_layout(path, descriptor)

    def chunks(self, file: File) -> Iterator[memoryview]:
        """Yield a file's bytes. Raises VerificationError, after the last, where they are not what the manifest says:
        nothing that was read is to be used before the end has come."""
        digest, place, left = hashlib.sha256(), self.places[file.path], file.size
        while left:
            try:
                piece = os.pread(self.descriptor, min(left, CHUNK), place)
            except OSError as cause:
                raise unreadable(self.path, cause) from cause
            if not piece:
                raise VerificationError(f"{self.path}: it became shorter while it was read", hint=AGAIN)
            digest.update(piece)
            yield memoryview(piece)
            place, left = place + len(piece), left - len(piece)
        if any(os.pread(self.descriptor, padding(file.size), place)):
            raise VerificationError(f"{self.path}: {file.path}: something is hidden behind its end", hint=AGAIN)
        if digest.hexdigest() != file.sha256:
            raise VerificationError(
                f"{self.path}: {file.path}: its sha256 is {digest.hexdigest()}, and the manifest says {file.sha256}",
                hint=AGAIN,
            )

    def differences(self) -> Iterator[str]:
        """Hash all files; yield what is not as the manifest says, each as a line."""
        for error in each_of(self.manifest.files, self.wrong):
            if error:
                yield error

    def wrong(self, file: File) -> str:
        """Hash a file; return what is wrong with it, or ""."""
        try:
            for _ in self.chunks(file):
                pass
        except VerificationError as error:
            return error.message
        return ""


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive and check all of its headers. Raises ConfigError where there is none, VerificationError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as cause:
        raise ConfigError(
            f"{path} cannot be read: {cause.strerror or cause}",
            hint="a bundle is what a build leaves at artifacts/DEVICE, or its archive",
        ) from cause
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(f"{path} is neither a bundle's folder nor its archive", hint="name one of them")
        try:
            archive = Archive(path, descriptor)
        except OSError as cause:
            raise unreadable(path, cause) from cause
        yield archive
    finally:
        os.close(descriptor)


def unreadable(path: Path, cause: OSError) -> VerificationError:
    return VerificationError(f"{path} cannot be read: {cause.strerror or cause}", hint=AGAIN)


def read_layout(path: Path, descriptor: int) -> tuple[Manifest, dict[str, int]]:
    """Return an archive's manifest, and where in it each file's bytes begin. Reads the headers and no file.

    Raises VerificationError.
    """
    present = os.fstat(descriptor).st_size
    manifest = read_first(path, descriptor)
    listed = {file.path: file.size for file in manifest.files}
    seen, places = {NAME}, {}
    place = BLOCK + len(manifest.data) + padding(len(manifest.data))
    for file in manifest.files:
        block = os.pread(descriptor, BLOCK, place)
        if len(block) < BLOCK:
            raise VerificationError(
                f"{path}: it is truncated: it ends at {present} bytes, before {file.path!r}", hint=AGAIN
            )
        if block != expected_header(file, path):
            raise refused(path, refusal(block, file.path, file.size, listed, seen))
        seen.add(file.path)
        places[file.path] = place + BLOCK
        place += BLOCK + file.size + padding(file.size)
    block = os.pread(descriptor, len(END), place)
    if len(block) < len(END):
        raise VerificationError(f"{path}: it is truncated: it has {present} bytes of {place + len(END)}", hint=AGAIN)
    if block != END:
        raise refused(path, refusal(block[:BLOCK], "", None, listed, seen))
    if present > place + len(END):
        raise refused(path, f"{present - place - len(END)} bytes of something else follow its end")
    return manifest, places


def read_first(path: Path, descriptor: int) -> Manifest:
    """Return the manifest, which is an archive's first file. Raises VerificationError."""
    block = os.pread(descriptor, BLOCK, 0)
    for magic, name in COMPRESSED.items():
        if block.startswith(magic):
            raise refused(path, f"it is compressed ({name}), and so not a plain archive; unpack it to a .tar first")
    if len(block) < BLOCK:
        raise refused(path, f"{len(block)} bytes are no tar archive")
    if block == bytes(BLOCK):
        raise refused(path, "it is empty")
    size = number(block[124:136])
    if size is not None and size > MAXIMUM:
        raise refused(path, f"its first file is said to have {size} bytes; a manifest has at most {MAXIMUM}")
    if size is None or size < 0 or block != header(NAME, size):
        raise refused(path, refusal(block, NAME, None, {}, set()))
    data = os.pread(descriptor, size + padding(size), BLOCK)
    if len(data) < size + padding(size):
        raise VerificationError(f"{path}: it is truncated within its manifest", hint=AGAIN)
    if any(data[size:]):
        raise refused(path, "something is hidden behind its manifest's end")
    return parse(data[:size], f"{path}: {NAME}")


def expected_header(file: File, path: Path) -> bytes:
    try:
        return header(file.path, file.size)
    except ConfigError as error:
        raise refused(path, error.message) from error


def refused(path: Path, why: str) -> VerificationError:
    return VerificationError(f"{path}: {why}", hint=f"an archive is what 'tapeout release create' writes; {AGAIN}")


def unpack(archive: Path, folder: Path) -> Manifest:
    """Write an archive's files into a folder, which must not exist: all of them, each as the manifest says, or nothing.

    Who signed it is not looked at. Raises VerificationError, ConfigError, StoreError.
    """
    with open_archive(archive) as opened:
        write_folder(opened, folder)
        return opened.manifest


def write_folder(opened: Archive, folder: Path) -> None:
    """Write the files aside, and rename the whole to `folder` once it is on the disk."""
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} exists already", hint="name a folder that does not exist")
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < opened.manifest.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            aside.mkdir()
            folders = {aside}
            for file in opened.manifest.files:
                path = aside / file.path
                if path.parent not in folders:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    folders.update(each for each in path.parents if each.is_relative_to(aside))
                write_new(path, opened.chunks(file))
            write_new(aside / NAME, iter([memoryview(opened.manifest.data)]))
            for each in folders:
                sync_folder(each)
            aside.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def write_new(path: Path, pieces: Iterator[memoryview]) -> None:
    """Write a file that does not exist, to the disk itself."""
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
