"""Removing from an update repository what no reader can be led to any more.

Kept are all roots, the live state, and the one before it, so that who is in the middle of an update can finish.
Metadata that is newer than the live state stays, too: a killed process may have left it, and its version is not used
again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import VerificationError
from pipelines.files import storing
from stages.release.updates import delta_index, documents
from stages.release.updates.adding import read_manifest, read_target
from stages.release.updates.documents import Layout
from stages.release.updates.repository import Repository

METADATA = re.compile(r"([1-9][0-9]{0,8})\.(.+)\.json")
HASHED = re.compile(r"[0-9a-f]{64}(\..+)?")  # a blob, a delta, a target file
ASIDE = re.compile(r"\..*[0-9a-f]{32}")  # what a killed process was about to rename


def prune(repository: Repository) -> tuple[int, int]:
    """Remove what neither the live state nor the one before it leads to; return how many files, and their bytes.

    Raises VerificationError where the live state cannot be read: nothing is removed then. StoreError.
    """
    layout = repository.layout
    keep = {layout.timestamp, *reachable(layout, repository.snapshot.signed.version)}
    before = [each for each in layout.versions("snapshot") if each < repository.snapshot.signed.version]
    if before:
        with contextlib.suppress(VerificationError):  # pruned in part before: what is left of it leads nowhere
            keep |= set(reachable(layout, before[-1]))
    live = {role: repository.metadata_of(role).signed.version for role in repository.roles}
    files = size = 0
    for path in removable(layout, live):
        if path not in keep:
            with storing(path):
                size += path.lstat().st_size
                files += 1
                path.unlink()
    for folder in (layout.targets, layout.blobs, layout.deltas):
        for root, _, _ in os.walk(folder, topdown=False):
            if Path(root) != folder:
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(root)
    return files, size


def reachable(layout: Layout, version: int) -> Iterator[Path]:
    """Yield the files that a snapshot leads to, itself among them. Raises VerificationError."""
    path = layout.versioned("snapshot", version)
    snapshot = documents.read(documents.read_bytes(path, "snapshot"), "snapshot", str(path))
    yield path
    for name, meta in snapshot.signed.meta.items():
        role = name.removesuffix(".json")
        path = layout.versioned(role, meta.version)
        targets = documents.read(documents.read_bytes(path, role), role, str(path)).signed.targets
        yield path
        for each, target in targets.items():
            yield layout.target(each, target.hashes["sha256"])
            if each.startswith("deltas/"):
                index = json.loads(read_target(layout, each, target))
                yield from (layout.delta(file["delta"]) for file in index["files"])
        for found in delta_index.known(targets).values():
            yield from (layout.blob(file.sha256) for file in read_manifest(layout, *found).files)


def removable(layout: Layout, live: dict[str, int]) -> Iterator[Path]:
    """Yield what was written by Tapeout and may be removed unless something leads to it."""
    for folder in (layout.metadata, layout.targets, layout.blobs, layout.deltas):
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root, name)
                found = METADATA.fullmatch(name) if folder == layout.metadata else None
                old = found and found[2] != "root" and int(found[1]) < live.get(found[2], 0)
                if old or ASIDE.fullmatch(name) or (folder != layout.metadata and HASHED.fullmatch(name)):
                    yield path
