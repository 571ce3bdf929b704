"""`tapeout verify`: rehash the store and the workspace, or a bundle against its manifest, and name what is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipelines.checkout import Checkout
from pipelines.digests import FileDigest, hash_file
from pipelines.errors import ConfigError
from pipelines.ledger import read_record
from pipelines.tree import walk


def verify_store(checkout: Checkout) -> Iterator[str]:
    """Rehash every object and every record; drop what is damaged, and yield its name. The next build makes it again."""
    for path, why in checkout.store.damaged():
        path.unlink()
        yield f"{checkout.project.relative(path)}: {why}; dropped"
    for path in checkout.ledger.records():
        record = read_record(path)
        if record is None or record.key != path.stem:
            path.unlink()
            yield f"{checkout.project.relative(path)}: it contradicts itself; dropped"
        elif not checkout.store.holds_tree(record.tree):
            path.unlink()
            yield f"{checkout.project.relative(path)}: an object of it is gone; dropped"


def verify_workspace(checkout: Checkout) -> Iterator[str]:
    """Rehash what lies under artifacts/ against the records there; yield what differs. Nothing is changed."""
    project = checkout.project
    base, recorded = project.artifacts / "build", set()
    for path in sorted(base.glob("*.json")):
        record, name = read_record(path), project.relative(path)
        if record is None:
            yield f"{name}: it contradicts itself; 'tapeout build' puts it right"
            continue
        device = (record.ingredients.get("device") or {}).get("")  # what only a bundle's key has
        folder = project.artifacts / device if device else base / path.stem
        recorded.add(folder)
        found = set(walk(folder)) if folder.is_dir() else set()
        for each in sorted(found | set(record.tree.files)):
            wrong = difference(folder / each, record.tree.files.get(each))
            if wrong:
                yield f"{project.relative(folder / each)}: {wrong}; 'tapeout build' puts it right"
    for folder in sorted(base.iterdir() if base.is_dir() else ()):
        if folder.is_dir() and folder not in recorded and not folder.with_name(f"{folder.name}.json").exists():
            yield f"{project.relative(folder)}: no record says what it should be"


def difference(path: Path, expected: FileDigest | None) -> str:
    """Return what is wrong with a file, or ""."""
    if expected is None:
        return "not in the record"
    if not path.is_file():
        return "missing"
    found = hash_file(path)[0]
    return "" if found == expected.sha256 else f"its sha256 is {found}, and the record says {expected.sha256}"


def verify_bundle(folder: Path) -> Iterator[str]:
    """Rehash the files that folder/manifest.json lists; yield what is damaged, missing or not listed.

    The manifest's "files" is {path: {"sha256", "size"}} or a list of {"path", "sha256", "size"}. Raises ConfigError.
    """
    manifest = folder / "manifest.json"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        entries = files if isinstance(files, dict) else {each["path"]: each for each in files}
        wanted = {name: str(entry["sha256"]) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{manifest} is not a bundle's manifest: {error}",
            hint="name a bundle's folder, or nothing to verify the store",
        ) from error
    for name, expected in sorted(wanted.items()):
        path = folder / name
        if not path.is_file():
            yield f"{path}: missing"
        elif (found := hash_file(path)[0]) != expected:
            yield f"{path}: its sha256 is {found}, and the manifest says {expected}"
    for name in sorted(set(walk(folder)) - set(wanted) - {"manifest.json"}):
        yield f"{folder / name}: not in the manifest"
