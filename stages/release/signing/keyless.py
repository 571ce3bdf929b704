"""Signing without a key of one's own: Sigstore binds the provenance to an identity, and logs it for all to see.

In a CI job the platform vouches for the workflow that runs; a person signs in with a browser. Takes the extra `keyless`
(sigstore 4) and the network. Beside a bundle X lies then X.sigstore.json, which `sigstore verify` reads too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, UpdateError, VerificationError
from pipelines.files import write_file
from stages.release.bundles.contents import check_contents, open_bundle
from stages.release.layout import sidecars
from stages.release.manifest import AGAIN, Manifest, object_of
from stages.release.signing.dsse import IN_TOTO
from stages.release.signing.signing import check_made, payload_of
from stages.release.signing.statement import check_statement


@dataclass(frozen=True)
class Identity:
    """Who must have signed. name: an e-mail address, or the URL of a workflow. issuer: URL of who vouches for it."""

    name: str
    issuer: str


def sigstore_path(bundle: Path) -> Path:
    """Where the signature of an identity lies, beside a bundle's folder or archive."""
    provenance = sidecars(bundle).provenance
    return provenance.with_name(provenance.name.replace(".provenance.json", ".sigstore.json"))


def sign_by_identity(path: Path, statement: Mapping[str, Any]) -> tuple[Path, str]:
    """Sign a bundle's provenance by the identity of this job or person; return the signature's path and the identity.

    Raises ConfigError where there is no identity or no sigstore, VerificationError, UpdateError for the network.
    """
    needed()
    from sigstore.dsse import Statement
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken, Issuer
    from sigstore.sign import SigningContext

    with open_bundle(path) as bundle:
        check_made(statement, bundle.manifest)
        check_contents(bundle)
    token = ambient_token()
    try:
        trust = ClientTrustConfig.production()
        who = IdentityToken(token) if token else Issuer(trust.signing_config.get_oidc_url()).identity_token()
        with SigningContext.from_trust_config(trust).signer(who) as signer:
            signed = signer.sign_dsse(Statement(payload_of(statement))).to_json()
    except Exception as cause:  # of four services, each with errors of its own
        raise UpdateError(f"Sigstore did not sign: {told(cause)}", hint="try again, or sign with --key FILE") from cause
    write_file(sigstore_path(path), signed.encode())
    return sigstore_path(path), who.identity


def ambient_token() -> str | None:
    """Return the token of the CI job that runs; None where a person is at a terminal. Raises ConfigError."""
    from sigstore.oidc import IdentityError, detect_credential

    try:
        token = detect_credential()
    except IdentityError as cause:
        raise ConfigError(
            f"this job gets no identity: {told(cause)}",
            hint="on GitHub: 'permissions: id-token: write' in the workflow",
        ) from cause
    if token is None and not sys.stdin.isatty():
        raise ConfigError(
            "there is no identity here: neither a CI platform that gives one, nor a person at a terminal",
            hint="sign with --key FILE, or in a job that may have an OIDC token",
        )
    return token


def check_identity(path: Path, manifest: Manifest, identity: Identity) -> dict[str, Any]:
    """Return the provenance of a bundle, which the identity has signed. Raises VerificationError, ConfigError,
    UpdateError where Sigstore's root of trust cannot be had."""
    needed()
    from sigstore.models import Bundle
    from sigstore.verify import Verifier, policy

    where = sigstore_path(path)
    try:
        data = where.read_bytes()
    except OSError as cause:
        raise VerificationError(
            f"{where} cannot be read: {cause.strerror or cause}", hint="'tapeout sign BUNDLE --identity' writes it"
        ) from cause
    object_of(data, str(where))
    try:
        bundle = Bundle.from_json(data)
    except Exception as cause:  # what is no bundle may fail there in any way
        raise VerificationError(f"{where}: no Sigstore bundle: {told(cause)}", hint=AGAIN) from cause
    try:
        verifier = Verifier.production()
    except Exception as cause:  # the network's, or those of the update framework under it
        raise UpdateError(f"Sigstore's root of trust could not be had: {told(cause)}", hint="try again") from cause
    try:
        kind, payload = verifier.verify_dsse(bundle, policy.Identity(identity=identity.name, issuer=identity.issuer))
    except Exception as cause:  # a bundle of anybody's: nothing of it is trusted yet
        raise VerificationError(
            f"{where}: not signed by {identity.name} of {identity.issuer}: {told(cause)}",
            hint="name the identity that was expected to sign, or get the bundle again",
        ) from cause
    if kind != IN_TOTO:
        raise VerificationError(f"{where}: its payload is {kind!r}, expected {IN_TOTO!r}", hint=AGAIN)
    statement = object_of(payload, str(where))
    check_statement(statement, manifest, str(where))
    return statement


def needed() -> None:
    """Raise ConfigError where sigstore is not installed."""
    try:
        import sigstore.models  # noqa: F401
    except ImportError as cause:
        raise ConfigError(
            f"signing by identity takes sigstore, which cannot be imported: {cause}",
            hint="pip install 'tapeout[keyless]', or sign with --key FILE",
        ) from cause


def told(cause: Exception) -> str:
    """Return what a library's error says, in one line."""
    return " ".join(str(cause).split())[:300] or type(cause).__name__
