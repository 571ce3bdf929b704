"""A small state in two sealed copies: one may be damaged or lost, and nothing is forgotten.

A copy whose seal holds, but whose value has another shape than is expected, counts as damaged.

A write changes the first copy, then the second, each whole or not at all: killed between the two, the first is newer.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.files import write_file
from pipelines.sealed import read_sealed, seal

Sound = Callable[[dict[str, Any]], bool]


class Twice:
    """NAME.json and NAME.copy.json in a folder. sound: says whether a value has the shape that it should have."""

    def __init__(self, folder: Path, name: str, sound: Sound) -> None:
        self.copies, self.sound = (folder / f"{name}.json", folder / f"{name}.copy.json"), sound

    def read(self, also: Sound = bool) -> dict[str, Any] | None:
        """Return what was written last; None where neither copy is whole and sound, or nothing was ever written.

        also: says of a sound value whether it is to be read.
        """
        for path in self.copies:
            with contextlib.suppress(RecursionError):  # nested without end: nothing of ours
                if (value := read_sealed(path)) and self.sound(value) and also(value):
                    return value
        return None

    def write(self, value: Mapping[str, Any]) -> None:
        """Remember `value`, which is not empty. Raises StoreError."""
        data = seal(value)
        for path in self.copies:
            with contextlib.suppress(OSError):
                if path.read_bytes() == data:
                    continue
            if path.is_dir() and not path.is_symlink():  # nothing of ours
                shutil.rmtree(path)
            write_file(path, data)
