"""Rehashes the store and the workspace, and names what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.checkout import Checkout
from pipelines.digests import FileDigest, hash_bytes, hash_file
from pipelines.errors import StoreError
from pipelines.files import storing
from pipelines.history import history_of
from pipelines.ledger import read_record
from pipelines.sealed import read_sealed
from pipelines.tree import read_tree, walk

AGAIN = "'tapeout build' makes it again"


def verify_store(checkout: Checkout) -> Iterator[str]:
    """Read all that Tapeout keeps; drop what is damaged, and yield its name. The next build makes that again.

    What is remembered of files is forgotten first, so that everything is hashed, by the next build too. Objects of
    DVC's that no record names are named only: Tapeout could not make them again.
    """
    yield from verify_memories(checkout)
    checkout.digests.forget_all()
    if checkout.ledger.records() and not checkout.store.objects.is_dir():
        name = checkout.project.relative(checkout.store.objects)
        yield f"{name}: the whole store is gone; nothing is dropped: put it back, 'dvc pull', or build again"
        return
    own = objects_of(checkout)
    for path, why in checkout.store.damaged():
        name = checkout.project.relative(path)
        if path.parent.name + path.name in own or checkout.store.objects.is_relative_to(checkout.project.state):
            yield drop(path, f"{name}: {why}; dropped, {AGAIN}")
        else:
            yield f"{name}: {why}; no record here names it, so it is DVC's or an old one: remove it, then 'dvc fetch'"
    for path in checkout.ledger.records():
        record, name = read_record(path), checkout.project.relative(path)
        if record is None or record.key != path.stem or not record.sound:
            yield drop(path, f"{name}: not as it was written; dropped, {AGAIN}")
        elif not checkout.store.holds_tree(record.tree):
            yield drop(path, f"{name}: an object that it names is gone; dropped, {AGAIN}")


def verify_memories(checkout: Checkout) -> Iterator[str]:
    """Yield the sealed files that are not as they were written, and the files of DVC's that a build wrote otherwise."""
    state, root = checkout.project.state, checkout.project.root
    memories = [*sorted(state.glob("*.json")), *sorted((state / "configurations").glob("*.json"))]
    lost = {path: "that build is not recorded in MLflow" for path in sorted((state / "outbox").glob("*.json"))}
    lost |= {path: "'tapeout builds' no longer knows that build" for path in sorted((state / "builds").glob("*.json"))}
    for path in [*memories, *lost]:
        if path.is_file() and read_sealed(path) is None:
            name = checkout.project.relative(path)
            yield drop(path, f"{name}: not as it was written; dropped, {lost.get(path, AGAIN)}")
    history = history_of(checkout.project)
    for name in map(checkout.project.relative, map(history.path, history.damaged())):  # sealed, so it was written so
        yield f"{name}: not an entry of this version's; remove it to let go of that build"
    for name, (_, written) in sorted((read_sealed(state / "recorded.json") or {}).items()):
        path = root / name
        if (hash_file(path)[0] if path.is_file() else hash_bytes(b"").sha256) != written:
            yield f"{name}: not what the last build wrote; 'tapeout build' writes it again"


def objects_of(checkout: Checkout) -> set[str]:
    """Return the names of the objects that records here name, and so that Tapeout made."""
    found: set[str] = set()
    for path in [*checkout.ledger.records(), *(checkout.project.artifacts / "build").glob("*.json")]:
        if record := read_record(path):
            files = {file.md5 for file in record.tree.files.values()}
            found |= files | {record.tree.listing_digest.md5 + ".dir", hash_bytes(record.data).md5}
    return found


def drop(path: Path, line: str) -> str:
    """Remove a damaged file; return the line that says so."""
    with storing(path):
        path.unlink(missing_ok=True)
    return line


def verify_workspace(checkout: Checkout) -> Iterator[str]:
    """Rehash what lies under artifacts/ against the records there; yield what differs. Nothing is changed."""
    project = checkout.project
    base, recorded = project.artifacts / "build", set()
    for path in sorted(base.glob("*.json")):
        record, name = read_record(path), project.relative(path)
        if record is None or not record.sound:
            yield f"{name}: not as it was written; 'tapeout build' puts it right"
            continue
        device = (record.ingredients.get("device") or {}).get("")  # what only a bundle's key has
        folder = project.artifacts / device if device else base / path.stem
        recorded.add(folder)
        found = set(walk(folder)) if folder.is_dir() else set()
        for each in sorted(found | set(record.tree.files)):
            wrong = difference(checkout, folder / each, record.tree.files.get(each))
            if wrong:
                yield f"{project.relative(folder / each)}: {wrong}; 'tapeout build' puts it right"
    for folder in sorted(base.iterdir() if base.is_dir() else ()):
        unknown = folder.is_dir() and folder not in recorded and not folder.with_name(f"{folder.name}.json").exists()
        if unknown and read_tree(folder, checkout.digests).digest not in known_digests(checkout):
            yield f"{project.relative(folder)}: no record says what it should be"


def known_digests(checkout: Checkout) -> set[str]:
    """Return the digests of all results in the ledger. One may lie in the workspace before its record does."""
    return {record.tree.digest for path in checkout.ledger.records() if (record := read_record(path))}


def difference(checkout: Checkout, path: Path, expected: FileDigest | None) -> str:
    """Return what is wrong with a file, or ""."""
    if expected is None:
        return "not in the record"
    if not path.is_file():
        return "missing"
    checkout.digests.forget(path)
    try:
        found = checkout.digests.of(path).sha256
    except StoreError as error:
        return error.message
    return "" if found == expected.sha256 else f"its sha256 is {found}, and the record says {expected.sha256}"
