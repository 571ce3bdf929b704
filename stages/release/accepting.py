"""What a bundle must be before it is released: whole, signed, traced to its sources, and through all of its gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import GateError, VerificationError
from stages.release.keys import PublicKey
from stages.release.layout import Releases
from stages.release.manifest import Manifest, sha256_of
from stages.release.state import Released
from stages.release.verifying import verify_bundle

SOURCE = "source"  # of the statement's resolved dependencies


def check_released(releases: Releases, release: Released, keys: Sequence[PublicKey]) -> None:
    """Raise VerificationError or GateError unless the release's archive is what the history says, signed by one of the
    keys, has a provenance, and passed its gates. Reads all of it."""
    archive = releases.archive(release.version, release.device)
    if not archive.is_file():
        raise VerificationError(
            f"{archive}: missing, so {release.title} cannot be verified",
            hint="put the archive and its two sidecars back from where it was created; 'tapeout release create' writes "
            "them again while artifacts/ still holds this very bundle",
        )
    verified = verify_bundle(archive, keys, require_signature=True)
    digest = verified.manifest.digest
    if digest != release.bundle:
        raise VerificationError(
            f"{archive}: holds bundle {digest[:16]}..., and the history says {release.bundle[:16]}...",
            hint="put back the archive that was released; a changed one needs a version of its own",
        )
    if (found := sha256_of(archive)) != release.archive:
        raise VerificationError(f"{archive}: its sha256 is {found}, and the history says {release.archive}")
    if verified.provenance is None:
        raise VerificationError(
            f"{archive}: it has no provenance", hint=f"expected beside it: {release.device}.provenance.json"
        )
    check_gates(verified.manifest, str(archive))


def check_gates(manifest: Manifest, where: str) -> None:
    """Raise GateError where a gate of the manifest did not pass."""
    gates = manifest.value["validation"].get("gates") or []
    failed = [gate for gate in gates if not (isinstance(gate, dict) and gate.get("passed") is True)]
    if failed:
        words = ", ".join(said(gate) for gate in failed)
        raise GateError(
            f"{where}: {len(failed)} of {len(gates)} gates did not pass: {words}",
            hint="a release passes all of its gates; 'tapeout report' says what would help",
        )


def said(gate: Any) -> str:
    if not isinstance(gate, Mapping):
        return repr(gate)
    task = f" of {gate['task']}" if gate.get("task") else ""
    return f"{gate.get('metric')}{task} {gate.get('value')} (bound {gate.get('bound')})"


def check_statement(statement: Mapping[str, Any] | None, manifest: Manifest, where: str) -> None:
    """Raise VerificationError unless there is a provenance statement, and it is this bundle's."""
    again = "build it again ('tapeout build'), and release what that leaves"
    if statement is None:
        raise VerificationError(f"{where}: no build of this project says where this bundle comes from", hint=again)
    subjects = [each.get("digest", {}).get("sha256") for each in statement.get("subject", [])]
    if subjects != [manifest.digest]:
        raise VerificationError(
            f"{where}: its provenance is that of another bundle: {', '.join(str(each)[:16] for each in subjects)}..., "
            f"expected {manifest.digest[:16]}...",
            hint=again,
        )


def uncommitted(statement: Mapping[str, Any]) -> list[str] | None:
    """Return the files that a bundle was built from without being committed, or None where all were.

    Empty: the sources had no revision at all.
    """
    definition = statement.get("predicate", {}).get("buildDefinition", {})
    for dependency in definition.get("resolvedDependencies", []):
        if dependency.get("name") == SOURCE:
            annotations = dependency.get("annotations", {})
            return list(annotations.get("changed", [])) if annotations.get("dirty") else None
    return []
