"""Verifying a bundle: that it is what a trusted key signed, every byte of it, and where it was built.

The order is that of trust: the manifest's form, the signatures over its digest, then the files against it. An archive
is verified where it is; nothing is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import VerificationError
from stages.release.bundles.contents import check_contents, open_bundle
from stages.release.bundles.folder import open_plain, opened_folder
from stages.release.layout import Sidecars, sidecars
from stages.release.manifest import AGAIN, Manifest, object_of
from stages.release.signing.dsse import IN_TOTO, MAXIMUM, open_envelope
from stages.release.signing.keys import PublicKey
from stages.release.signing.model_signature import check_model_signature
from stages.release.signing.statement import check_statement

if TYPE_CHECKING:
    from stages.release.signing.keyless import Identity

UNSIGNED = "NOT signed: every file is as the manifest says, but who made it is not proven"
UNTRACED = "no provenance: what it was built from is not known"


@dataclass(frozen=True)
class Verified:
    """A bundle that is what it claims to be.

    signed_by: the trusted keys, none for an unsigned one. provenance: its in-toto statement, of the shape that
    statement.py checks. notes: what was not proven, in words. identity: who signed by Sigstore, or "".
    """

    manifest: Manifest
    signed_by: tuple[PublicKey, ...]
    provenance: dict[str, Any] | None
    notes: tuple[str, ...]
    identity: str = ""


def verify_bundle(
    path: Path, keys: Sequence[PublicKey], *, require_signature: bool = True, identity: Identity | None = None
) -> Verified:
    """Verify a bundle's folder or archive, and what lies beside it. keys: those that are trusted.

    Raises VerificationError, of which DamagedError names every file that is not as the manifest says; ConfigError where
    there is no bundle. Without require_signature a bundle may be unsigned; a signature that is there must be right.
    identity: who must have signed by Sigstore; then no key's signature is needed.
    """
    with open_bundle(path) as bundle:
        verified = (
            check_identified(path, bundle.manifest, keys, identity)
            if identity
            else check_origin(bundle.manifest, sidecars(path), keys)
        )
        if require_signature and not (verified.signed_by or verified.identity):
            raise VerificationError(
                f"{path}: nobody signed it",
                hint="'tapeout sign' signs one; 'tapeout verify --unsigned' checks the files alone",
            )
        check_contents(bundle)
    return verified


def check_identified(path: Path, manifest: Manifest, keys: Sequence[PublicKey], identity: Identity) -> Verified:
    """Check who signed by Sigstore, and where any key is trusted, what keys have signed."""
    from stages.release.signing.keyless import check_identity

    statement = check_identity(path, manifest, identity)
    signed_by = check_origin(manifest, sidecars(path), keys).signed_by if keys else ()
    return Verified(manifest, signed_by, statement, (), f"{identity.name} ({identity.issuer})")


def check_origin(manifest: Manifest, beside: Sidecars, keys: Sequence[PublicKey]) -> Verified:
    """Check who signed a manifest, and what its provenance says. Raises VerificationError for a wrong signature."""
    signers: set[str] = set()
    notes, provenance = [], None
    if (envelope := read_sidecar(beside.provenance)) is not None:
        where = str(beside.provenance)
        opened = open_envelope(envelope, IN_TOTO, keys, where)
        provenance = object_of(opened.payload, where)
        check_statement(provenance, manifest, where)
        signers.update(opened.keyids)
    if (signature := read_sidecar(beside.signature)) is not None:
        signers.add(check_model_signature(signature, manifest, keys, str(beside.signature)).keyid)
    if not signers:
        notes.append(UNSIGNED)
    if provenance is None:
        notes.append(UNTRACED)
    return Verified(manifest, tuple(key for key in keys if key.keyid in signers), provenance, tuple(notes))


def read_sidecar(path: Path) -> bytes | None:
    """Return a sidecar's bytes, a little more than are ever accepted at most; None where there is none.

    Raises VerificationError.
    """
    try:
        with open(open_plain(path), "rb") as file:
            return file.read(MAXIMUM + 1)
    except FileNotFoundError:
        return None
    except OSError as cause:
        raise VerificationError(f"{path} cannot be read: {cause.strerror or cause}", hint=AGAIN) from cause


def damaged(folder: Path) -> Iterator[str]:
    """Hash the files of a bundle's folder; yield what is missing, not listed, or not as the manifest says.

    Nothing outside the folder is read, and no signature. Raises ConfigError where there is no manifest,
    VerificationError for one that is none.
    """
    yield from opened_folder(folder).differences()
