"""All conformance vectors of a bundle, written into a folder: the same bytes each time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.conformance.answers import Runtime, write_answers
from stages.conformance.changes import BUNDLE
from stages.conformance.images import write_images
from stages.conformance.keys import published_key, write_keys
from stages.conformance.tampering import Tampering
from stages.conformance.texts import streams, write_tokenizers
from stages.conformance.updates import rollout, updates
from stages.conformance.versions import versions
from stages.release.manifest import NAME, Manifest
from stages.release.signing.signing import sign_bundle

VERSION = 1
FILE = "vectors.json"


def write_vectors(bundle: Path, manifest: Manifest, statement: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the vectors of a bundle's folder into an empty folder; return what vectors.json says.

    statement: the bundle's provenance. Raises StageError where the bundle does not answer here, VerificationError where
    a file of it is not as its manifest says.
    """
    copied = folder / BUNDLE
    for name in (NAME, *(file.path for file in manifest.files)):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / name, copied / name)
    sign_bundle(copied, [published_key("signer")], statement)
    write_keys(folder)
    images, tokenizers = write_images(folder), write_tokenizers(folder, copied)
    answers = write_answers(folder, Runtime.open(copied, manifest))
    tampering = Tampering(folder, manifest, dict(statement))
    said = {
        "version": VERSION,
        "made_with": made_with(),
        "bundle": {"path": BUNDLE, "digest": manifest.digest, "key": "keys/signer.pub"},
        "images": images,
        "tokenizers": tokenizers,
        "streams": [case for each in tokenizers for case in streams(each["file"], folder / each["file"])],
        **answers,
        "tampered": [*tampering.refused()],
        "accepted": [*tampering.accepted()],
        "updates": updates(tampering),
        "versions": versions(),
        "rollout": [*rollout()],
    }
    (folder / FILE).write_text(document(said), encoding="utf-8")
    return said


def made_with() -> dict[str, str]:
    """Return the versions of what decides on the vectors' bytes."""
    return {name: version(name) for name in ("onnxruntime", "pillow", "tokenizers")}


def document(said: Mapping[str, Any]) -> str:
    """Return vectors.json: a line for each case, so that a difference can be read."""
    parts = []
    for name, value in said.items():
        if isinstance(value, list):
            lines = ",\n".join(f"  {json.dumps(each)}" for each in value)
            parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
