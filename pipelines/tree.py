"""A folder's contents: relative paths and digests. What an artifact *is*."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.digests import READING, Digests, FileDigest, hash_bytes, hash_json
from pipelines.errors import StoreError


@dataclass(frozen=True)
class Tree:
    """files: path relative to the folder, with forward slashes -> digest."""

    files: Mapping[str, FileDigest]

    @cached_property
    def digest(self) -> str:
        """sha256 over names and contents. Modes, times and empty folders are no part of it."""
        return hash_json({name: file.sha256 for name, file in self.files.items()})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    @cached_property
    def listing(self) -> bytes:
        """DVC's .dir object for the folder."""
        entries = [{"md5": self.files[name].md5, "relpath": name} for name in sorted(self.files)]
        return json.dumps(entries, sort_keys=True).encode()

    @cached_property
    def listing_digest(self) -> FileDigest:
        return hash_bytes(self.listing)

    def to_json(self) -> dict[str, Any]:
        return {name: self.files[name]._asdict() for name in sorted(self.files)}

    @staticmethod
    def from_json(value: Mapping[str, Mapping[str, Any]]) -> Tree:
        return Tree({name: FileDigest(**file) for name, file in value.items()})


def read_tree(folder: Path | str, digests: Digests) -> Tree:
    """Return the contents of `folder`. Raises StoreError for what is neither file nor folder."""
    return Tree({name: digests.of(f"{folder}/{name}") for name in sorted(walk(folder))})


def walk(folder: Path | str, prefix: str = "") -> Iterator[str]:
    """Yield the relative path of every file under `folder`."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    yield from walk(entry.path, name + "/")
                elif entry.is_file(follow_symlinks=False):
                    yield name
                else:
                    raise StoreError(
                        f"{entry.path} is not a plain file", hint="an artifact holds only files and folders"
                    )
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror or error}", hint=READING) from error
