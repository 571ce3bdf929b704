"""What a tampered bundle differs by from the one in the vectors, and what verifying it comes to on the Python side."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import VerificationError
from stages.release.bundles.contents import DamagedError
from stages.release.layout import sidecars
from stages.release.manifest import read
from stages.release.signing.keys import PublicKey
from stages.release.signing.verifying import check_origin, verify_bundle

Change = dict[str, Any]
BUNDLE = "bundle"
MANIFEST, PROVENANCE, SIGNATURE = f"{BUNDLE}/manifest.json", f"{BUNDLE}.provenance.json", f"{BUNDLE}.model.sig"


def flip(file: str, offset: int, mask: int = 0x01) -> Change:
    return {"op": "flip", "file": file, "offset": offset, "mask": mask}


def truncate(file: str, size: int) -> Change:
    return {"op": "truncate", "file": file, "size": size}


def append(file: str, data: bytes) -> Change:
    return {"op": "append", "file": file, "base64": base64.b64encode(data).decode()}


def remove(file: str) -> Change:
    return {"op": "remove", "file": file}


def replace(file: str, by: str) -> Change:
    return {"op": "replace", "file": file, "with": by}


def changed(vectors: Path, changes: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the vectors' bundle and its sidecars into `folder`, with the changes made; return the bundle's folder.

    What is not changed is linked. Raises ValueError for a change that changes nothing.
    """
    touched = {change["file"] for change in changes}
    sources = [path for path in (vectors / BUNDLE).rglob("*") if path.is_file()]
    for source in (*sources, vectors / PROVENANCE, vectors / SIGNATURE):
        name = source.relative_to(vectors).as_posix()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(source, folder / name, link=name not in touched)
    for change in changes:
        path = folder / change["file"]
        before = path.read_bytes()
        if change["op"] == "remove":
            path.unlink()
            continue
        path.write_bytes(data_after(before, change, vectors))
        if path.read_bytes() == before:
            raise ValueError(f"{change} changes nothing")
    return folder / BUNDLE


def copy(source: Path, target: Path, link: bool) -> None:
    """Copy a file; or link it, where the file system can."""
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def data_after(before: bytes, change: Mapping[str, Any], vectors: Path) -> bytes:
    """Return a file's bytes after a change. Raises ValueError for one that is none."""
    if change["op"] == "flip":
        data = bytearray(before)
        data[change["offset"]] ^= change["mask"]
        return bytes(data)
    if change["op"] == "truncate":
        return before[: change["size"]]
    if change["op"] == "append":
        return before + base64.b64decode(change["base64"])
    if change["op"] == "replace":
        return (vectors / change["with"]).read_bytes()
    raise ValueError(f"no such change: {change['op']}")


def refusal(bundle: Path, keys: Sequence[PublicKey]) -> str | None:
    """Verify a bundle as `tapeout verify` does; return the code of mobile/spec/README.md, None where it is taken.

    Raises ConfigError where there is no manifest.
    """
    try:
        manifest = read(bundle)
    except VerificationError:
        return "manifest"
    try:
        if not check_origin(manifest, sidecars(bundle), keys).signed_by:
            return "signature"
    except VerificationError:
        return "signature"
    try:
        verify_bundle(bundle, keys)
    except DamagedError:
        return "integrity"
    return None
