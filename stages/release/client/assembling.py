"""Making a folder hold a whole bundle: each file from where it costs least, and each by its sha256.

A file comes from what lies in the folder already, from a version that is here, by a delta from one, or from the
repository, whole. Every file is whole under its name, or not there: a kill leaves nothing to be mended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import TapeoutError, UpdateError, VerificationError
from pipelines.files import write_file
from stages.release.client.downloading import Source, download
from stages.release.client.installation import ASIDE, Installation, holds, sync
from stages.release.manifest import NAME, File, Manifest, object_of

SLACK = 1 << 20  # bytes that must stay free
INDEX_MAXIMUM = 16 << 20  # bytes of a delta index
PLAIN = {"path": str, "from": str, "to": str, "size": int, "delta": str, "delta_size": int}
Said = Callable[[str, int], object]  # is told what came, and of how many bytes


@dataclass(frozen=True)
class Delta:
    """How a file comes from another. base: the version whose file `path` it starts from. size: of the delta."""

    base: str
    sha256: str
    size: int
    result: str


@dataclass
class Cost:
    """deltas: bytes of the deltas that were used. notes: why files came whole although there was a delta."""

    deltas: int = 0
    notes: list[str] = field(default_factory=list)


def complete(
    folder: Path,
    manifest: Manifest,
    place: Installation,
    source: Source,
    deltas: Mapping[str, Delta],
    said: Said,
) -> Cost:
    """Make the folder hold every file of the manifest, and the manifest. deltas: by the path of what they make.

    Raises VerificationError for what is not what the manifest says, UpdateError for what cannot be had; what was
    completed stays.
    """
    cost, here = Cost(), sources(place)
    check_room(folder, manifest, place, here)
    for file in manifest.files:
        target = folder / file.path
        if holds(target, file):
            continue
        clear(folder, file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not taken(target, file, here.get(file.sha256, ())):
            made = file.path in deltas and by_delta(target, file, deltas[file.path], place, source, cost, said)
            if not made:
                whole(target, file, place, source, said)
        here.setdefault(file.sha256, []).append(target)
    clear(folder, NAME)
    if not holds(folder / NAME, File(NAME, len(manifest.data), manifest.digest)):
        write_file(folder / NAME, manifest.data)
    listed = {folder / file.path for file in manifest.files}
    for base, _, names in os.walk(folder, topdown=False):
        for path in (Path(base, name) for name in names):
            if ASIDE.fullmatch(path.name) and path not in listed:
                path.unlink()  # where a killed client was writing
        sync(Path(base))
    return cost


def sources(place: Installation) -> dict[str, list[Path]]:
    """Return where files lie in the versions that are here, by the sha256 that they should have."""
    found: dict[str, list[Path]] = {}
    for digest in place.present():
        with contextlib.suppress(TapeoutError):
            for file in place.read(digest).files:
                found.setdefault(file.sha256, []).append(place.path(digest) / file.path)
    return found


def check_room(folder: Path, manifest: Manifest, place: Installation, here: Mapping[str, Iterable[Path]]) -> None:
    """Raise UpdateError where the disk has no room for what is missing."""
    missing = 0
    for file in manifest.files:
        if file.sha256 not in here:
            there = [folder / file.path, partial(place, file.sha256)]
            missing += max(0, file.size - max(path.stat().st_size if path.is_file() else 0 for path in there))
    free = shutil.disk_usage(place.folder).free
    if missing + SLACK > free:
        raise UpdateError(
            f"{place.folder}: {manifest.title} needs {mib(missing + SLACK)} more there, and {mib(free)} are free",
            hint="free some space and run it again; what is in place stays",
        )


def mib(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


def clear(folder: Path, path: str) -> None:
    """Remove what stands where a file or its folders are to be, and is none: damage, or a link to elsewhere."""
    place = folder
    *parents, name = path.split("/")
    for part in parents:
        place /= part
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            place.unlink()
    target = place / name
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)


def taken(target: Path, file: File, candidates: Iterable[Path]) -> bool:
    """Link or copy the file from one of the places where it should lie; say whether one had it."""
    for path in candidates:
        if path == target or not holds(path, file):
            continue
        aside = aside_of(target)
        aside.unlink(missing_ok=True)
        try:
            os.link(path, aside)
        except OSError:
            shutil.copyfile(path, aside)
            sync(aside)
            if not holds(aside, file):
                aside.unlink()
                continue
        os.replace(aside, target)
        aside.unlink(missing_ok=True)  # a rename from one link to another of the same file does nothing
        return True
    return False


def by_delta(
    target: Path, file: File, delta: Delta, place: Installation, source: Source, cost: Cost, said: Said
) -> bool:
    """Make the file by its delta; say whether that worked. Where it did not, a note says why."""
    got, aside = partial(place, delta.sha256), aside_of(target)
    try:
        from stages.release.deltas.delta_apply import apply_delta

        path = f"deltas/{delta.sha256[:2]}/{delta.sha256}"
        download(source, path, got, delta.size, delta.sha256, lambda count: said(file.path, count))
        old = place.path(delta.base) / file.path
        apply_delta(got, old, aside, expected_size=file.size, expected_sha256=file.sha256)
        if not holds(aside, file):
            raise VerificationError("it makes another file than the manifest says")
        sync(aside)
        os.replace(aside, target)
    except (TapeoutError, ImportError) as cause:
        said_why = cause.message if isinstance(cause, TapeoutError) else str(cause)
        cost.notes.append(f"{file.path}: its delta cannot be used, so it comes whole: {said_why}")
        aside.unlink(missing_ok=True)
        return False
    finally:
        if got.is_file() and got.stat().st_size == delta.size:
            got.unlink()
    cost.deltas += delta.size
    return True


def whole(target: Path, file: File, place: Installation, source: Source, said: Said) -> None:
    """Download the file."""
    got = partial(place, file.sha256)
    path = f"blobs/{file.sha256[:2]}/{file.sha256}"
    download(source, path, got, file.size, file.sha256, lambda count: said(file.path, count))
    sync(got)
    os.replace(got, target)


def partial(place: Installation, sha256: str) -> Path:
    """Where a download grows."""
    return place.partial / f"{sha256}.part"


def aside_of(target: Path) -> Path:
    return target.with_name(f".{target.name[:200]}.{'0' * 32}")


def parse_index(data: bytes, base: str, manifest: Manifest, old: Manifest, where: str) -> dict[str, Delta]:
    """Return the deltas of an index, by path. base: the digest of the bundle `old`, which is here.

    Raises VerificationError, also for deltas from another bundle, or to another.
    """
    value = object_of(data, where)
    if value.get("delta_version") != 1:
        raise VerificationError(f"{where}: delta_version is {repr(value.get('delta_version'))[:66]}, expected 1")
    if value.get("from") != base:
        raise VerificationError(
            f"{where}: its deltas are for another base: from {repr(value.get('from'))[:66]}, and {base} is here"
        )
    if value.get("to") != manifest.digest:
        raise VerificationError(f"{where}: its deltas lead to {repr(value.get('to'))[:66]}, expected {manifest.digest}")
    if not isinstance(value.get("files"), list):
        raise VerificationError(f"{where}: it lists no files")
    wanted = {file.path: file for file in manifest.files}
    had = {file.path: file.sha256 for file in old.files}
    found = {}
    for each in value["files"]:
        file = checked_entry(each, wanted, had, where)
        if each["delta_size"] < file.size:
            found[file.path] = Delta(base, each["delta"], each["delta_size"], file.sha256)
    return found


def checked_entry(entry: Any, wanted: Mapping[str, File], had: Mapping[str, str], where: str) -> File:
    """Return the file that an index's entry makes. Raises VerificationError unless it fits both manifests."""
    if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in PLAIN.items()):
        raise VerificationError(f"{where}: an entry lacks one of {', '.join(PLAIN)}, or has it in another kind")
    name = str(entry["path"])
    file = wanted.get(name)
    if file is None or (file.sha256, file.size) != (entry["to"], entry["size"]):
        raise VerificationError(f"{where}: {name[:250]!r}: the delta makes another file than the new bundle has")
    if had.get(name) != entry["from"]:
        raise VerificationError(f"{where}: {name[:250]!r}: the delta is for another base than the file that is here")
    digest = entry["delta"]
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef") or entry["delta_size"] < 0:
        raise VerificationError(f"{where}: {name[:250]!r}: the delta has no sha256, or no size")
    return file
