"""`tapeout sign`: a bundle's provenance and model signature, beside it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.project import Project
from stages.release.commands.parser import Parser


def sign(arguments: list[str], project: Project) -> int:
    """sign a BUNDLE (its folder or archive) with a key, or by identity: its provenance, and a model signature"""
    options = parse(arguments)
    from stages.release.bundles.contents import open_bundle

    with open_bundle(options.bundle) as bundle:
        manifest = bundle.manifest
    statement = None if options.no_provenance else statement_of(project, manifest.device)
    told: dict[str, Any] = {"bundle": manifest.digest, "name": manifest.name, "version": manifest.version}
    told |= {"device": manifest.device, "provenance": None, "signature": None}
    if options.identity:
        from stages.release.signing.keyless import sign_by_identity

        path, identity = sign_by_identity(options.bundle, statement or {})
        told |= {"identity": identity, "sigstore": str(path)}
    else:
        from stages.release.signing.keys import load_signing_key
        from stages.release.signing.signing import model_signer, sign_bundle

        keys = [load_signing_key(path) for path in options.key]
        beside = sign_bundle(options.bundle, keys, statement)
        told["keys"] = [{"keyid": key.public.keyid, "name": key.public.name} for key in keys]
        told["provenance"] = str(beside.provenance) if statement is not None else None
        told["signature"] = str(beside.signature) if model_signer(keys) else None
    print(json.dumps(told) if options.json else "\n".join(lines(told, manifest.title, statement)))
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("sign", "Signs a bundle: its signatures lie beside it, named as it is.")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="its folder, artifacts/DEVICE, or its archive")
    parser.add_argument(
        "--key", action="append", default=[], type=Path, metavar="FILE", help="a private key; may be repeated"
    )
    parser.add_argument("--identity", action="store_true", help="by the identity of this CI job or person: Sigstore")
    parser.add_argument("--no-provenance", action="store_true", help="sign what it is, and not what it was built from")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    if bool(options.key) == options.identity:
        raise ConfigError(
            f"tapeout sign: {'either --key or --identity, not both' if options.key else 'with what?'}",
            hint="--key FILE ('tapeout key new FILE' makes one), or --identity in a CI job",
        )
    if options.identity and options.no_provenance:
        raise ConfigError("tapeout sign: an identity signs the provenance: --no-provenance leaves nothing to sign")
    return options


def statement_of(project: Project, device: str) -> dict[str, Any]:
    """Return the provenance that the last build has noted for the device. Raises ConfigError where there is none."""
    from pipelines.provenance import read_statement

    statement = read_statement(project, device)
    if statement is None:
        raise ConfigError(
            f"no build here has noted where artifacts/{device} comes from, or it is not what that build left",
            hint="run 'tapeout build', then sign; or sign it without saying where it comes from: --no-provenance",
        )
    return statement


def lines(told: Mapping[str, Any], title: str, statement: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what was signed, for the terminal."""
    yield f"signed {title}"
    yield f"  bundle       sha256 {told['bundle']}"
    if "identity" in told:
        yield f"  identity     {told['identity']}"
        yield f"  provenance   {told['sigstore']}"
        return
    for key in told["keys"]:
        yield f"  key          {key['name']}, key id {key['keyid']}"
    if statement is None:
        yield "  provenance   none: what it was built from is not signed"
    else:
        from stages.release.signing.statement import source_words

        yield f"  provenance   {told['provenance']}: {source_words(statement)}"
    absent = "none: that format has P-256 keys alone"
    yield f"  signature    {told['signature'] or absent}"
