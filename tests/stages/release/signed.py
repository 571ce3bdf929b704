"""Signed bundles for tests: one pair of keys for a run, and provenance as a build writes it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from stages.release.bundles.archive import pack
from stages.release.manifest import Manifest, read
from stages.release.signing.keys import SigningKey, new_key
from stages.release.signing.signing import sign_bundle
from tests.stages.release.bundles import make_bundle

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@functools.cache
def folder_of_keys() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tapeout-keys-")


def key(name: str = "release", kind: str = "p256") -> SigningKey:
    """A key of that name, the same one in all tests of a run. Its files: see key_file."""
    return made_key(name, kind)


@functools.cache
def made_key(name: str, kind: str) -> SigningKey:
    return new_key(key_file(name), kind)


def key_file(name: str = "release") -> Path:
    return Path(folder_of_keys().name, name)


def statement_of(manifest: Manifest, *, digest: str = "", dirty: bool = False, **parameters: str) -> dict[str, Any]:
    """A provenance as pipelines/provenance.py writes it. parameters: name, version, device where they are others."""
    subject = {"sha256": digest or manifest.digest}
    own = {"name": manifest.name, "version": manifest.version, "device": manifest.device}
    changed = ["stages/load.py"] if dirty else []
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "manifest.json", "digest": subject}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:tapeout:build:1",
                "externalParameters": {**own, **parameters, "overrides": ["quantize=int4"], "config_dirs": []},
                "internalParameters": {},
                "resolvedDependencies": [
                    {
                        "name": "source",
                        "digest": {"gitCommit": COMMIT},
                        "annotations": {"dirty": dirty, "changed": changed, "folder": "."},
                    },
                    {"name": "torch", "uri": "pkg:pypi/torch@2.9.1"},
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:tapeout:builder:local", "version": {"engine": "1"}},
                "byproducts": [{"name": "bundle", "digest": dict(subject)}],
            },
        },
    }


def signed(folder: Path, *, archived: bool = False, by: str = "release", **values: Any) -> Path:
    """Make a bundle, sign it with its provenance, and return its folder or archive. values: see make_bundle."""
    make_bundle(folder, **values)
    path = folder
    if archived:
        path = folder.with_name(f"{folder.name}.tar")
        pack(folder, path)
    sign_bundle(path, [key(by)], statement_of(read(folder)))
    return path
