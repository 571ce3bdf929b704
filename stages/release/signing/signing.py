"""Signing a bundle: beside its folder or archive lie then its provenance, in an envelope, and a model signature."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, VerificationError
from pipelines.files import storing, write_file
from stages.release.bundles.contents import check_contents, open_bundle
from stages.release.layout import Sidecars, sidecars
from stages.release.manifest import Manifest
from stages.release.signing.dsse import IN_TOTO, sign_envelope
from stages.release.signing.keys import SigningKey
from stages.release.signing.model_signature import sign_model
from stages.release.signing.statement import check_statement


def sign_bundle(path: Path, keys: Sequence[SigningKey], statement: Mapping[str, Any] | None) -> Sidecars:
    """Sign a bundle whose every file is as its manifest says; each byte is hashed once. Return where the sidecars lie.

    path: its folder or archive. statement: its provenance; None: it gets none. What was signed before is replaced; the
    same keys give the same bytes. The model signature is of the first P-256 key, and without one is not written.
    Raises VerificationError, ConfigError, StoreError.
    """
    model_key = model_signer(keys)
    if not keys or (statement is None and model_key is None):
        raise ConfigError(
            "nothing would be signed: a model signature takes a P-256 key, and there is no provenance",
            hint="'tapeout key new FILE' makes a P-256 key; a build writes the provenance",
        )
    with open_bundle(path) as bundle:
        if statement is not None:
            check_made(statement, bundle.manifest)
        check_contents(bundle)
        manifest = bundle.manifest
    beside = sidecars(path)
    replace(beside.provenance, sign_envelope(payload_of(statement), IN_TOTO, keys) if statement is not None else None)
    replace(beside.signature, sign_model(manifest, model_key) if model_key else None)
    return beside


def model_signer(keys: Sequence[SigningKey]) -> SigningKey | None:
    """Return the key that makes the model signature: the format has elliptic curves alone."""
    return next((key for key in keys if key.public.kind == "p256"), None)


def check_made(statement: Mapping[str, Any], manifest: Manifest) -> None:
    """Raise VerificationError unless the statement is of this bundle."""
    try:
        check_statement(statement, manifest, "the last build's provenance")
    except VerificationError as error:
        raise VerificationError(
            error.message,
            hint="the build that wrote the provenance made another bundle: run 'tapeout build', then sign what it made",
        ) from error


def payload_of(statement: Mapping[str, Any]) -> bytes:
    """Return a statement's one form in bytes."""
    return json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def replace(path: Path, data: bytes | None) -> None:
    """Write a sidecar, or take away what an earlier signing left of it. Raises StoreError."""
    if data is not None:
        write_file(path, data)
        return
    with storing(path), contextlib.suppress(FileNotFoundError):
        path.unlink()
