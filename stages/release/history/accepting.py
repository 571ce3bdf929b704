"""What a bundle must be before it is released: whole, signed, traced to its sources, and through all of its gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import GateError, VerificationError
from stages.release.history.state import Released
from stages.release.layout import Releases
from stages.release.manifest import Manifest, sha256_of
from stages.release.signing.keys import PublicKey
from stages.release.signing.statement import check_statement
from stages.release.signing.verifying import verify_bundle


def check_released(releases: Releases, release: Released, keys: Sequence[PublicKey]) -> tuple[str, ...]:
    """Raise VerificationError or GateError unless the release's archive is what the history says, signed by one of the
    keys, has a provenance, and passed its gates. Reads all of it. Return what is to be said of it: that it had none.
    """
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
    return check_gates(verified.manifest, str(archive))


def check_gates(manifest: Manifest, where: str) -> tuple[str, ...]:
    """Raise GateError where a gate of the manifest did not pass, or where it has no list of gates.

    The list may be empty, as a build can be configured to have none (validate.gates=[], and no budgets); return a note
    that says so.
    """
    gates = manifest.value["validation"].get("gates")
    if not isinstance(gates, list):
        raise GateError(
            f"{where}: validation.gates is {'missing' if gates is None else type(gates).__name__}, expected a list",
            hint="a release says which gates it passed: package the 'gates' of metrics.json, which may be empty",
        )
    if not gates:
        return (f"{manifest.title}: held against NO gates: its build was configured with none",)
    failed = [gate for gate in gates if not (isinstance(gate, dict) and gate.get("passed") is True)]
    if failed:
        words = ", ".join(said(gate) for gate in failed)
        raise GateError(
            f"{where}: {len(failed)} of {len(gates)} gates did not pass: {words}",
            hint="a release passes all of its gates; 'tapeout report' says what would help",
        )
    return ()


def said(gate: Any) -> str:
    if not isinstance(gate, Mapping):
        return repr(gate)
    task = f" of {gate['task']}" if gate.get("task") else ""
    return f"{gate.get('metric')}{task} {gate.get('value')} (bound {gate.get('bound')})"


def check_traced(statement: Mapping[str, Any] | None, manifest: Manifest, where: str) -> None:
    """Raise VerificationError unless there is a provenance statement, and it is this bundle's."""
    if statement is None:
        raise VerificationError(
            f"{where}: no build of this project says where this bundle comes from",
            hint="build it again ('tapeout build'), and release what that leaves",
        )
    check_statement(statement, manifest, f"{where}: the build's provenance")
