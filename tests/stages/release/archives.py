"""Archives that somebody has made on purpose, for tests: each entry as it is asked for, true or not."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from stages.release.bundles.ustar import BLOCK, END, header, padding


def entries(archive: Path) -> list[tuple[bytes, bytes]]:
    """The (header, data with its padding) of each file of an archive of ours, without its end."""
    data, place, found = archive.read_bytes(), 0, []
    while data[place : place + BLOCK] != bytes(BLOCK):
        size = int(data[place + 124 : place + 135], 8)
        size += padding(size)
        found.append((data[place : place + BLOCK], data[place + BLOCK : place + BLOCK + size]))
        place += BLOCK + size
    return found


def joined(parts: Iterable[tuple[bytes, bytes]], end: bytes = END) -> bytes:
    return b"".join(first + second for first, second in parts) + end


def edited(block: bytes, place: int, field: bytes) -> bytes:
    """A header with other bytes at a place, and the sum that belongs to it."""
    block = block[:place] + field + block[place + len(field) :]
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def file(path: str, data: bytes) -> tuple[bytes, bytes]:
    """An entry of a plain file, in our format."""
    return header(path, len(data)), data + bytes(padding(len(data)))


def with_fitting_manifest(archive: Path, path: str, data: bytes) -> bytes:
    """An archive in which a file is another, and the manifest has that one's size and sha256."""
    parts = entries(archive)
    value = json.loads(parts[0][1][: int(parts[0][0][124:135], 8)])
    (entry,) = (each for each in value["files"] if each["path"] == path)
    entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    parts[0] = file("manifest.json", json.dumps(value).encode())
    place = next(number for number, (block, _) in enumerate(parts) if block.startswith(path.encode() + b"\0"))
    return joined([*parts[:place], file(path, data), *parts[place + 1 :]])


def special(path: str, kind: bytes, target: str = "", form: int = tarfile.USTAR_FORMAT) -> tuple[bytes, bytes]:
    """An entry of a link, a device or a folder."""
    info = tarfile.TarInfo(path)
    info.type, info.linkname = kind, target
    return info.tobuf(form), b""


def tarred(folder: Path, form: int, change: Callable[[tarfile.TarInfo], tarfile.TarInfo] = lambda info: info) -> bytes:
    """A folder as Python's tarfile writes it: manifest.json first, then sorted."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for path in sorted(names(folder), key=lambda name: (name != "manifest.json", name)):
            info = change(tar.gettarinfo(folder / path, path))
            with (folder / path).open("rb") as opened:
                tar.addfile(info, opened)
    return out.getvalue()


def names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()
