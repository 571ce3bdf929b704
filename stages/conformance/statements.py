"""The provenance that the vectors' bundle is signed with, and statements that must be refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import VerificationError
from pipelines.project import Project
from pipelines.provenance import PREDICATE, STATEMENT, read_statement
from stages.release.layout import sidecars
from stages.release.manifest import NAME, Manifest, object_of
from stages.release.signing.dsse import peek_envelope
from stages.release.signing.statement import check_statement
from stages.release.signing.verifying import read_sidecar

BUILDER = "urn:tapeout:builder:unknown"


def statement_for(bundle: Path, manifest: Manifest, project: Project) -> tuple[dict[str, Any], str]:
    """Return the provenance of just this bundle, and in words where it was found.

    What lies beside the bundle, else what the project's last build noted; else one that says that nothing is known.
    """
    beside = sidecars(bundle).provenance
    if (data := read_sidecar(beside)) is not None:
        found = object_of(peek_envelope(data, str(beside)), str(beside))
        check_statement(found, manifest, str(beside))
        return found, "what lies beside the bundle"
    noted = read_statement(project, manifest.device)
    if noted is not None and describes(noted, manifest):
        return noted, "what the last build here noted"
    return statement(manifest, manifest.digest), "none is known: the statement says so"


def describes(noted: dict[str, Any], manifest: Manifest) -> bool:
    try:
        check_statement(noted, manifest, "the last build's provenance")
    except VerificationError:
        return False
    return True


def statement(manifest: Manifest, digest: str) -> dict[str, Any]:
    """Return a statement about manifest.json of this digest which claims nothing: no source, no dependency."""
    parameters = {"name": manifest.name, "version": manifest.version, "device": manifest.device}
    return {
        "_type": STATEMENT,
        "subject": [{"name": NAME, "digest": {"sha256": digest}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:tapeout:vectors:1",
                "externalParameters": parameters,
                "internalParameters": {},
                "resolvedDependencies": [],
            },
            "runDetails": {
                "builder": {"id": BUILDER},
                "byproducts": [{"name": "bundle", "digest": {"sha256": digest}}],
            },
        },
    }


def wrong_statements(manifest: Manifest, other: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield (name, payload) of statements that are not this bundle's provenance. other: of another version."""
    right = statement(manifest, manifest.digest)
    yield "is of another bundle", payload(statement(other, other.digest))
    yield "is of another manifest of the same version", payload(statement(manifest, other.digest))
    yield "names another version", payload(statement(other, manifest.digest))
    yield "is of no in-toto type", payload({**right, "_type": "https://in-toto.io/Statement/v0.1"})
    yield "has another predicate", payload({**right, "predicateType": "https://slsa.dev/provenance/v0.2"})
    yield "has two subjects", payload({**right, "subject": right["subject"] * 2})
    made = copy.deepcopy(right)
    made["predicate"]["runDetails"]["byproducts"][0]["digest"]["sha256"] = other.digest
    yield "says that another bundle was built", payload(made)
    made["predicate"]["runDetails"]["byproducts"] = []
    yield "says that no bundle was built", payload(made)
    yield "names a member twice", payload(right).replace(b"{", b'{"_type":"a",', 1)
    yield "is no object", b"[]"


def payload(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
