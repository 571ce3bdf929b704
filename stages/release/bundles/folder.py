"""A bundle's folder, held against its manifest. Nothing outside of it is read, whatever lies in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipelines.errors import VerificationError
from stages.release.bundles.contents import DamagedError, each_of
from stages.release.manifest import AGAIN, NAME, File, Manifest, read

CHUNK = 1 << 20  # bytes
LISTED = "and the manifest says"


@dataclass(frozen=True)
class Folder:
    """The folder of a bundle."""

    path: Path
    manifest: Manifest

    def chunks(self, file: File) -> Iterator[memoryview]:
        """Yield a file's bytes, each piece good until the next is asked for.

        Raises VerificationError, at the end where they are not what the manifest says: nothing that was read is to be
        used before.
        """
        path, digest, count = self.path / file.path, hashlib.sha256(), 0
        buffer = memoryview(bytearray(min(CHUNK, file.size + 1)))
        try:
            descriptor = open_plain(path)
            try:
                while count <= file.size and (size := os.readv(descriptor, [buffer])):
                    digest.update(buffer[:size])
                    yield buffer[:size]
                    count += size
            finally:
                os.close(descriptor)
        except OSError as cause:
            raise VerificationError(f"{path}: cannot be read: {cause.strerror or cause}", hint=AGAIN) from cause
        if count != file.size:
            more = "at least " if count > file.size else ""
            raise VerificationError(f"{path}: it has {more}{count} bytes, {LISTED} {file.size}", hint=AGAIN)
        if digest.hexdigest() != file.sha256:
            raise VerificationError(f"{path}: its sha256 is {digest.hexdigest()}, {LISTED} {file.sha256}", hint=AGAIN)

    def differences(self) -> Iterator[str]:
        """Hash all files; yield what is missing, not listed, or not as the manifest says, each as a line."""
        lines = {name: f"{self.path / printable(name)}: {why}" for name, why in self.strays()}
        found = each_of(self.manifest.files, self.wrong)
        lines |= {file.path: line for file, line in zip(self.manifest.files, found, strict=True)}
        yield from (line for _, line in sorted(lines.items()) if line)

    def wrong(self, file: File) -> str:
        """Return what is wrong with a file, or "". Hashes it, unless its size says enough."""
        path = self.path / file.path
        found = self.entries.get(file.path)
        if found is None:
            return f"{path}: missing"
        if not isinstance(found, int):
            return f"{path}: {found}"
        if found != file.size:
            return f"{path}: it has {found} bytes, {LISTED} {file.size}"
        try:
            for _ in self.chunks(file):
                pass
        except VerificationError as error:
            return error.message
        return ""

    def strays(self) -> Iterator[tuple[str, str]]:
        """Yield what lies in the folder and is not in the manifest, and what is wrong with that."""
        listed = {file.path for file in self.manifest.files}
        for name, found in self.entries.items():
            if name not in listed and name != NAME:
                yield name, "not in the manifest" if isinstance(found, int) else found
        if not isinstance(found := self.entries.get(NAME), int):
            yield NAME, found or "missing"

    def check_listing(self) -> None:
        """Raise DamagedError unless exactly the manifest's files are there; none is hashed."""
        lines = [f"{self.path / printable(name)}: {why}" for name, why in self.strays()]
        for file in self.manifest.files:
            found = self.entries.get(file.path, "missing")
            if not isinstance(found, int):
                lines.append(f"{self.path / file.path}: {found}")
        if lines:
            raise DamagedError(self.path, sorted(lines))

    @cached_property
    def entries(self) -> dict[str, int | str]:
        """All that lies in the folder: {path: bytes of a plain file, or in words what else it is}."""
        return dict(walk(self.path))


def opened_folder(path: Path) -> Folder:
    """Raises ConfigError where there is no manifest, VerificationError."""
    with contextlib.suppress(OSError):  # reading it will say why
        if not stat.S_ISREG(os.lstat(path / NAME).st_mode):
            raise VerificationError(f"{path / NAME}: no plain file", hint=AGAIN)
    return Folder(path, read(path))


def walk(folder: Path) -> Iterator[tuple[str, int | str]]:
    """Yield what lies under a folder; links are not followed. Raises VerificationError."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{name}/")
                    elif entry.is_file(follow_symlinks=False):
                        yield name, entry.stat(follow_symlinks=False).st_size
                    else:
                        kind = "a symbolic link" if entry.is_symlink() else "a device, a FIFO or a socket"
                        yield name, f"{kind}; only plain files belong into a bundle"
        except OSError as cause:
            where = printable(str(folder / prefix))
            raise VerificationError(f"{where} cannot be read: {cause.strerror or cause}", hint=AGAIN) from cause


def printable(name: str) -> str:
    """Return a name as a terminal may show it: it may be anybody's."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)


def open_plain(path: Path) -> int:
    """Open a plain file for reading, and nothing else. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a plain file")
    return descriptor
