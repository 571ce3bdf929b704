"""`tapeout verify`: rehash the store, or a bundle against its manifest, and name what is damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipelines.checkout import Checkout
from pipelines.digests import hash_file
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
