"""Digests of files, remembered by what `stat` says of them, so that an unchanged file is not read again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipelines.errors import StoreError
from pipelines.sealed import read_sealed, write_sealed

CHUNK = 1 << 20
LARGE = 1 << 24  # bytes
RACY = 20_000_000  # ns: a file changed this shortly before it was hashed may change again within the same clock tick
READING = "if it should be there, put it back or make it readable, and build again"


class FileDigest(NamedTuple):
    """sha256 is identity; md5 is what DVC's formats ask for; size in bytes."""

    sha256: str
    md5: str
    size: int


class Digests:
    """A memory of file digests. Entries count only while size, both times and inode are what they were.

    known: {kind:path -> [signature, value]}. It is sealed on disk: one wrong digit in it would make a wrong file good.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed = False
        self.known: dict[str, list[Any]] = dict((read_sealed(path) or {}).get("entries", ()))
        self._used: set[str] = set()
        self._racy: set[str] = set()

    def of(self, path: Path | str) -> FileDigest:
        """Return the digest of the file at `path`. Raises StoreError where it cannot be read."""
        return FileDigest(*self.memo(path, "digest", hash_file))

    def memo(self, path: Path | str, kind: str, compute: Callable[[Path], Any]) -> Any:
        """Return compute(path), a value that JSON can hold, from memory while the file has not changed."""
        name = f"{kind}:{path}"
        try:
            signature = signature_of(os.stat(path))
            entry = self.known.get(name)
            if entry is not None and entry[0] == signature:
                self._used.add(name)
                return entry[1]
            now = time.time_ns()
            value = compute(Path(path))
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}", hint=READING) from error
        self._note(name, signature, value)  # the signature from before: a change meanwhile shows in the next
        if signature[2] > now - RACY:
            self._racy.add(name)
        return value

    def learn(self, path: Path | str, digest: FileDigest) -> None:
        """Remember the digest of a file that this process has just written."""
        self._note(f"digest:{path}", signature_of(os.stat(path)), list(digest))

    def moved(self, old: str, new: str) -> None:
        """Know at `new` what was known of the file at `old`, which was moved: what has changed since it was hashed
        still shows."""
        entry = self.known.pop(f"digest:{old}", None)
        if entry is not None:
            racy = f"digest:{old}" in self._racy
            self._note(f"digest:{new}", *entry)
            if racy:
                self._racy.add(f"digest:{new}")

    def forget(self, path: Path | str) -> None:
        """Let the file at `path` be hashed anew when it is asked for."""
        self.changed |= self.known.pop(f"digest:{path}", None) is not None

    def forget_all(self) -> None:
        """Let every file be hashed anew."""
        self.known.clear()
        self.changed = True

    def save(self) -> None:
        """Write the memory, less files that are gone or that changed so recently that another change would not show.

        Raises StoreError.
        """
        if not self.changed:
            return
        limit = time.time_ns() - RACY
        settled = [
            (name, entry)
            for name, entry in self.known.items()
            if entry[0][2] < limit
            and name not in self._racy
            and (name in self._used or os.path.exists(name.partition(":")[2]))
        ]
        write_sealed(self.path, {"entries": settled})
        self.changed = False

    def _note(self, name: str, signature: list[int], value: Any) -> None:
        self.known[name] = [signature, value]
        self._used.add(name)
        self._racy.discard(name)
        self.changed = True


def signature_of(stat: os.stat_result) -> list[int]:
    """Return what changes whenever a file's content is changed by ordinary means, ctime among them."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def hash_file(path: Path) -> list[Any]:
    """Return [sha256, md5, size] of a file, in one reading."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > LARGE:
            return hash_large(file)
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
            size += len(chunk)
    return [sha256.hexdigest(), md5.hexdigest(), size]


def hash_large(file: BinaryIO) -> list[Any]:
    """Return the same of an open file, each digest in a thread of its own, while this one reads on."""
    from concurrent.futures import Future, ThreadPoolExecutor  # which a start-up without large files does without

    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    running: list[Future[None]] = []
    with ThreadPoolExecutor(2) as others:
        while chunk := file.read(LARGE):
            for each in running:
                each.result()
            running = [others.submit(digest.update, chunk) for digest in (sha256, md5)]
            size += len(chunk)
        for each in running:
            each.result()
    return [sha256.hexdigest(), md5.hexdigest(), size]


def hash_bytes(data: bytes) -> FileDigest:
    """Return the digest of `data`, as if it lay in a file."""
    return FileDigest(hashlib.sha256(data).hexdigest(), hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data))


def hash_json(value: Any) -> str:
    """Return the sha256 of `value` in canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
