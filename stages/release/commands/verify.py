"""`tapeout verify`: a bundle, or without one the store and the workspace."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.commands import anywhere
from pipelines.errors import ConfigError, VerificationError
from pipelines.project import Project
from stages.release.commands.parser import Parser

if TYPE_CHECKING:
    from stages.release.signing.verifying import Verified


@anywhere
def verify(arguments: list[str], project: Project) -> int:
    """rehash a BUNDLE, check who signed it and where it comes from; without one, the store and the workspace"""
    options = parse(arguments)
    if options.bundle is None:
        return verify_project(project, options)
    from stages.release.bundles.contents import DamagedError

    try:
        verified = verified_bundle(project, options)
        differences = again(verified, project, options)
    except VerificationError as error:
        if not options.json:
            raise
        damaged = error.lines if isinstance(error, DamagedError) else []
        print(json.dumps({"verified": False, "damaged": damaged, "error": error.message, "hint": error.hint}))
        return error.exit_status
    if options.json:
        print(json.dumps(document(verified, differences)))
    else:
        print("\n".join([*lines(verified), *rebuilt(differences)]))
    return 1 if differences else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("verify", "Verifies a bundle; without one, the store and the workspace.")
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, help="its folder or archive")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        type=Path,
        metavar="PUB",
        help="a public key that is trusted, instead of those in releases/keys; may be repeated",
    )
    parser.add_argument("--identity", metavar="NAME", help="who must have signed by Sigstore; with --issuer")
    parser.add_argument("--issuer", metavar="URL", help="who vouches for that identity")
    parser.add_argument("--unsigned", action="store_true", help="take one that nobody signed: check the files alone")
    parser.add_argument("--rebuild", action="store_true", help="build it again from its provenance, and compare bytes")
    parser.add_argument("--source", type=Path, metavar="DIR", help="with --rebuild: the sources, instead of the commit")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="with --rebuild: where something lies here that was outside the project",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    if options.bundle is None and (useless := [*given(options)]):
        raise ConfigError(f"tapeout verify: {useless[0]} is for a BUNDLE", hint="tapeout verify BUNDLE")
    if bool(options.identity) != bool(options.issuer):
        raise ConfigError("tapeout verify: --identity and --issuer go together", hint="both say who must have signed")
    if (options.source or options.set) and not options.rebuild:
        raise ConfigError("tapeout verify: --source and --set are for --rebuild")
    return options


def given(options: argparse.Namespace) -> Iterator[str]:
    """Yield the options that were given and are for a bundle."""
    for name in ("key", "identity", "issuer", "unsigned", "rebuild", "source", "set"):
        if getattr(options, name):
            yield f"--{name}"


def verify_project(project: Project, options: argparse.Namespace) -> int:
    """Print what is damaged in the store and the workspace; exit status 1 if anything is."""
    from pipelines.checkout import opened
    from pipelines.project import find_project
    from pipelines.verify import verify_store, verify_workspace

    find_project(project.root)  # raises where this is none

    with opened(project, waiting) as checkout:
        damaged = [*verify_store(checkout), *verify_workspace(checkout)]
    print(json.dumps({"damaged": damaged}) if options.json else "\n".join(damaged) or "nothing is damaged")
    return 1 if damaged else 0


def waiting() -> None:
    print("another build has this project; waiting for it", file=sys.stderr)


def verified_bundle(project: Project, options: argparse.Namespace) -> Verified:
    """Verify the bundle. An unsigned one passes only where nobody's key is trusted, or --unsigned says so."""
    from stages.release.layout import Releases
    from stages.release.signing.keys import trusted_keys
    from stages.release.signing.verifying import verify_bundle

    identity = None
    if options.identity:
        from stages.release.signing.keyless import Identity

        identity = Identity(options.identity, options.issuer)
    keys = trusted_keys(options.key, Releases(project))
    return verify_bundle(options.bundle, keys, require_signature=bool(keys) and not options.unsigned, identity=identity)


def again(verified: Verified, project: Project, options: argparse.Namespace) -> list[str] | None:
    """With --rebuild, build the bundle again; return what differs. Raises ConfigError where nobody says from what."""
    if not options.rebuild:
        return None
    statement = verified.provenance or noted(verified, project)
    if statement is None:
        raise ConfigError(
            f"{options.bundle} has no provenance: what it was built from is not known",
            hint="have the file that ends in .provenance.json beside it",
        )
    from stages.release.signing.rebuild import rebuild

    return rebuild(verified.manifest, statement, project, options.source, options.set)


def noted(verified: Verified, project: Project) -> dict[str, Any] | None:
    """Return what the build that made this bundle here has noted of it, which nobody has signed yet; or None."""
    from pipelines.provenance import read_statement

    statement = read_statement(project, verified.manifest.device)
    made = statement["subject"][0]["digest"]["sha256"] if statement else None
    return statement if made == verified.manifest.digest else None


def document(verified: Verified, differences: list[str] | None) -> dict[str, Any]:
    """Return what was verified, as --json prints it.

    verified: a trusted key or identity has signed it, every file is as the manifest says, and a second build, if it was
    asked for, gave the same. An unsigned bundle is never that, though its files may be right and the exit status 0.
    """
    from stages.release.signing.statement import builder_of, source_of

    manifest = verified.manifest
    told: dict[str, Any] = {
        "verified": bool(verified.signed_by or verified.identity) and not differences,
        "files": "as the manifest says",
        "damaged": [],
        "name": manifest.name,
        "version": manifest.version,
        "device": manifest.device,
        "bundle": manifest.digest,
        "signed_by": [{"keyid": key.keyid, "name": key.name} for key in verified.signed_by],
        "identity": verified.identity,
        "source": None,
        "builder": None,
        "notes": list(verified.notes),
    }
    if verified.provenance is not None:
        commit, dirty, changed = source_of(verified.provenance)
        told["source"] = {"commit": commit, "dirty": dirty, "changed": list(changed)}
        told["builder"] = builder_of(verified.provenance)[0]
    if differences is not None:
        told["differences"] = differences
    return told


def lines(verified: Verified) -> Iterator[str]:
    """Yield what was verified, for the terminal."""
    from stages.release.signing.statement import builder_of, source_words

    manifest = verified.manifest
    yield f"{manifest.title}: every file is as the manifest says"
    yield f"  bundle       sha256 {manifest.digest}"
    yield f"  files        {len(manifest.files)}, {manifest.size / 2**20:.2f} MiB"
    for key in verified.signed_by:
        yield f"  signed by    {key.name}, key id {key.keyid}"
    if verified.identity:
        yield f"  signed by    {verified.identity}, as Sigstore vouches"
    if verified.provenance is not None:
        yield f"  source       {source_words(verified.provenance)}"
        yield "  builder      {}: {}".format(*builder_of(verified.provenance))
    for note in verified.notes:
        yield f"  {note}"


def rebuilt(differences: list[str] | None) -> Iterator[str]:
    """Yield what a second build has shown."""
    if differences is not None:
        yield "built again:" if differences else "built again from its sources: the same bytes"
        yield from (f"  {line}" for line in differences)
