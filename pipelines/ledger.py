"""What a key produced: records of finished nodes, beside their folders in the workspace and by key in this checkout."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.digests import hash_json
from pipelines.files import write_where_it_differs
from pipelines.sealed import seal, unseal
from pipelines.tree import Tree


@dataclass(frozen=True)
class Record:
    """ingredients: all that went into the key, kept so that two builds can be compared. tree: what came out.

    It holds no time and no path of the machine: equal builds leave equal records.
    """

    ingredients: Mapping[str, Any]
    tree: Tree

    @cached_property
    def key(self) -> str:
        return hash_json(self.ingredients)

    @cached_property
    def data(self) -> bytes:
        """The record as a file: sealed, so that none of its bytes can change unnoticed."""
        value = {
            "digest": self.tree.digest,
            "files": self.tree.to_json(),
            "ingredients": self.ingredients,
            "key": self.key,
        }
        return seal(value, sort=True)

    @property
    def sound(self) -> bool:
        """Say whether what the file says of key and digest follows from the rest of it. The seal says so, too."""
        return self.key == hash_json(self.ingredients) and self.tree.digest == Tree(self.tree.files).digest


def read_record(path: Path | str) -> Record | None:
    """Return the record at `path`, or None where there is none or a byte of it differs from what was written."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        value = unseal(data)
        if value is None:
            return None
        record = Record(value["ingredients"], Tree.from_json(value["files"]))
        vars(record).update(key=value["key"], data=data)  # sealed, so that nothing has to be computed again
        vars(record.tree).update(digest=value["digest"])
    except (OSError, TypeError, KeyError, AttributeError):
        return None
    return record


class Ledger:
    """This checkout's memory of keys, so that going back to an earlier configuration finds its results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Record | None:
        """Return the record of `key`, or None."""
        record = read_record(self._path(key))
        return record if record is not None and record.key == key else None  # a file under another's name is no record

    def add(self, record: Record) -> None:
        """Remember `record`."""
        write_where_it_differs(self._path(record.key), record.data)

    def add_stored(self, record: Record, stored: Path) -> bool:
        """Remember `record`, which the file `stored` holds and keeps: it gets a second name, so its ctime changes.

        Return whether it did. On another file system, or where something has this name already, it is no matter of a
        name: see `add`.
        """
        path = self._path(record.key)
        for _ in range(2):
            try:
                os.link(stored, path)
                return True
            except FileNotFoundError:
                with contextlib.suppress(OSError):
                    os.mkdir(os.path.dirname(path))
            except OSError:
                break
        return False

    def records(self) -> list[Path]:
        """Return the files of all records."""
        return sorted(self.folder.glob("??/*.json"))

    def _path(self, key: str) -> str:
        return f"{self.folder}/{key[:2]}/{key}.json"
