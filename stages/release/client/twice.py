"""A small state in two sealed copies: one may be damaged or lost, and nothing is forgotten.

A write changes the first copy, then the second, each whole or not at all: killed between the two, the first is newer.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.files import write_file
from pipelines.sealed import read_sealed, seal


class Twice:
    """NAME.json and NAME.copy.json in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.copies = (folder / f"{name}.json", folder / f"{name}.copy.json")

    def read(self) -> dict[str, Any] | None:
        """Return what was written last; None where neither copy is whole, or nothing was ever written."""
        return next((value for path in self.copies if (value := read_sealed(path))), None)

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
