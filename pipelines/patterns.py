"""Which files a pattern names: as Path.glob has it, except that `**` goes through links to folders, as stages do."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path, PurePath

Mark = tuple[int, int]  # device and inode of a folder


def matches(base: Path, pattern: str) -> set[Path]:
    """Return the files in `base` that `pattern` names."""
    return {Path(each) for each in found(str(base), PurePath(pattern).parts) if os.path.isfile(each)}


def found(base: str, parts: tuple[str, ...]) -> Iterator[str]:
    """Yield what the parts of a pattern lead to."""
    if not parts:
        yield base
    elif parts[0] == "**":
        for folder in folders(base, ()):
            yield from found(folder, parts[1:])
    elif any(sign in parts[0] for sign in "*?["):
        for name in listed(base):
            if fnmatch.fnmatchcase(name, parts[0]):
                yield from found(os.path.join(base, name), parts[1:])
    elif os.path.lexists(path := os.path.join(base, parts[0])):
        yield from found(path, parts[1:])


def folders(base: str, above: tuple[Mark, ...]) -> Iterator[str]:
    """Yield `base` and all folders in it. above: those that it lies in, into which a link may lead back."""
    if not os.path.isdir(base) or (mark := mark_of(base)) in above:
        return
    yield base
    for name in listed(base):
        yield from folders(os.path.join(base, name), (*above, mark))


def listed(folder: str) -> list[str]:
    """Return the names in a folder; none where it is no folder, or one that nobody could read from."""
    return sorted(os.listdir(folder)) if os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK) else []


def mark_of(folder: str) -> Mark:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino
