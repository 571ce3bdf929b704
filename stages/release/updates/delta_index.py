"""Deltas between releases in an update repository: which ones there are, and the target file that says so.

    deltas/DEVICE/VERSION/FROM.json    what a client that holds the bundle FROM can make of its files
    deltas/AB/SHA256                   the deltas, by their own sha256

A release has deltas from the few bundles that clients of its device are most likely to hold. A file for which a delta
would not be smaller has none; a client takes the whole file then.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.errors import VerificationError
from pipelines.files import storing
from stages.release.deltas.delta import make_delta
from stages.release.manifest import NAME, File, Manifest, object_of, sha256_of
from stages.release.updates.adding import Added, is_there, read_target
from stages.release.updates.documents import Layout

DELTA_VERSION = 1
SOURCES = 3  # bundles that a release has deltas from, at most


def index_path(device: str, version: str, source: str) -> str:
    return f"deltas/{device}/{version}/{source}.json"


def indexed(targets: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """Return {(version, device): the bundles that the release has deltas from}."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in targets:
        parts = path.split("/")
        if parts[0] == "deltas" and len(parts) == 4:
            found.setdefault((parts[2], parts[1]), []).append(parts[3].removesuffix(".json"))
    return found


def sources(target: str, there: Callable[[str], bool], *ranked: Sequence[str]) -> list[str]:
    """Return the bundles to make deltas from, the likeliest first. there: says whether one can be read."""
    others = dict.fromkeys(bundle for rank in ranked for bundle in rank if bundle != target)
    return list(islice(filter(there, others), SOURCES))


def add_deltas(layout: Layout, device: str, version: str, old: Manifest, new: Manifest, added: Added) -> int:
    """Make the deltas from one bundle to another, of blobs that lie there; return their bytes.

    Raises VerificationError, StoreError.
    """
    before = {file.path: file for file in old.files}
    files, total = [], 0
    with tempfile.TemporaryDirectory(prefix="tapeout-delta-") as folder:
        contexts = [context(layout, manifest, Path(folder, name)) for manifest, name in ((old, "old"), (new, "new"))]
        for file in new.files:
            had = before.get(file.path)
            if had is None or had.sha256 == file.sha256:
                continue
            made = add_delta(layout, had, file, (contexts[0], contexts[1]), added)
            if made:
                files.append(made)
                total += made["delta_size"]
    value = {"delta_version": DELTA_VERSION, "from": old.digest, "to": new.digest, "files": files}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    added.target(layout, index_path(device, version, old.digest), text.encode())
    return total


def add_delta(layout: Layout, old: File, new: File, contexts: tuple[Path, Path], added: Added) -> dict[str, Any] | None:
    """Make the delta of one file; return what the index says of it, None where there is no smaller one."""
    aside = layout.deltas / f".{uuid.uuid4().hex}"
    with storing(aside):
        layout.deltas.mkdir(parents=True, exist_ok=True)
    try:
        size = make_delta(layout.blob(old.sha256), layout.blob(new.sha256), aside, new.path, *contexts)
        if size is None:
            return None
        digest = sha256_of(aside)
        path = layout.delta(digest)
        if not is_there(path, size, digest, check=True):
            with storing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(aside, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(aside, path)
            added.folders.add(path.parent)
    finally:
        aside.unlink(missing_ok=True)
    return {
        "path": new.path,
        "from": old.sha256,
        "to": new.sha256,
        "size": new.size,
        "delta": digest,
        "delta_size": size,
    }


def context(layout: Layout, manifest: Manifest, folder: Path) -> Path:
    """Lay a bundle out as a folder of links to its blobs."""
    folder.mkdir()
    (folder / NAME).write_bytes(manifest.data)
    for file in manifest.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(layout.blob(file.sha256).resolve())
    return folder


def known(targets: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return {bundle: (path, target)} of every manifest that the targets name."""
    tail = f"/{NAME}"
    return {
        target.hashes["sha256"]: (path, target)
        for path, target in targets.items()
        if path.startswith("bundles/") and path.endswith(tail)
    }


def intact(layout: Layout, targets: Mapping[str, Any], device: str, version: str, source: str) -> bool:
    """Say whether an index and the deltas in it are all there."""
    path = index_path(device, version, source)
    try:
        files = object_of(read_target(layout, path, targets[path]), path)["files"]
    except VerificationError:
        return False
    return all(is_there(layout.delta(each["delta"]), each["delta_size"], each["delta"]) for each in files)
