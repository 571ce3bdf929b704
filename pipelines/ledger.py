"""What a key produced: records of finished nodes, beside their folders in the workspace and by key in this checkout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.digests import hash_json
from pipelines.files import write_file
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
        """The record as a file."""
        value = {
            "digest": self.tree.digest,
            "files": self.tree.to_json(),
            "ingredients": self.ingredients,
            "key": self.key,
        }
        return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def read_record(path: Path) -> Record | None:
    """Return the record at `path`, or None where there is none or it contradicts itself."""
    try:
        value = json.loads(path.read_bytes())
        record = Record(value["ingredients"], Tree.from_json(value["files"]))
        sound = record.key == value["key"] and record.tree.digest == value["digest"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if sound else None


class Ledger:
    """This checkout's memory of keys, so that going back to an earlier configuration finds its results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Record | None:
        """Return the record of `key`, or None."""
        record = read_record(self._path(key))
        return record if record is not None and record.key == key else None

    def add(self, record: Record) -> None:
        """Remember `record`."""
        path = self._path(record.key)
        if not path.is_file() or path.read_bytes() != record.data:
            write_file(path, record.data)

    def records(self) -> list[Path]:
        """Return the files of all records."""
        return sorted(self.folder.glob("??/*.json"))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
