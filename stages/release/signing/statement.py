"""A bundle's provenance: an in-toto v1 statement with the SLSA v1 predicate, held against the bundle that it is about.

pipelines/provenance.py writes it. Here it is read, from anybody's hand: whoever has its shape checked may take its
members for what the checks below say that they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.errors import VerificationError
from stages.release.manifest import AGAIN, NAME, Manifest

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
SHA256 = re.compile("[0-9a-f]{64}")
COMMIT = re.compile("[0-9a-f]{40,64}")
LOCAL = "urn:tapeout:builder:local"


def check_statement(value: Mapping[str, Any], manifest: Manifest, where: str) -> None:
    """Raise VerificationError unless this is the provenance of just this bundle."""
    check_shape(value, where)
    parameters = value["predicate"]["buildDefinition"]["externalParameters"]
    name, version, device = parameters["name"], parameters["version"], parameters["device"]
    same = (name, version, device) == (manifest.name, manifest.version, manifest.device)
    signed = value["subject"][0]["digest"]["sha256"]
    if signed != manifest.digest and same:
        raise VerificationError(
            f"{where}: {NAME} was changed after that: its sha256 is {manifest.digest}, and was {signed}",
            hint=AGAIN,
        )
    if signed != manifest.digest or not same:
        raise VerificationError(
            f"{where}: it is the provenance of another bundle: {name} {version} for {device}, and this is "
            f"{manifest.title}",
            hint=AGAIN,
        )
    made = [
        each["digest"]["sha256"] for each in value["predicate"]["runDetails"]["byproducts"] if each["name"] == "bundle"
    ]
    if made != [manifest.digest]:
        raise VerificationError(
            f"{where}: its build made {', '.join(made) or 'no bundle'}, and this bundle is {manifest.digest}",
            hint=AGAIN,
        )


def check_shape(value: Mapping[str, Any], where: str) -> None:
    """Raise VerificationError unless all that is read of a statement, here and elsewhere, is what it should be."""

    def need(right: bool, what: str) -> None:
        if not right:
            raise VerificationError(f"{where}: no provenance as it should be: {what}", hint=AGAIN)

    need(value.get("_type") == STATEMENT, f"its _type must be {STATEMENT}")
    need(value.get("predicateType") == PREDICATE, f"its predicateType must be {PREDICATE}")
    subject = value.get("subject")
    need(
        isinstance(subject, list) and len(subject) == 1 and artifact(subject[0], sha256=True)
        and subject[0]["name"] == NAME,
        f"its one subject must be {NAME}, by sha256",
    )  # fmt: skip
    predicate = mapping(value.get("predicate"))
    definition, run = mapping(predicate.get("buildDefinition")), mapping(predicate.get("runDetails"))
    need(isinstance(definition.get("buildType"), str), "buildDefinition.buildType must be a URI")
    parameters = mapping(definition.get("externalParameters"))
    for name in ("name", "version", "device"):
        need(isinstance(parameters.get(name), str), f"buildDefinition.externalParameters.{name} must be text")
    for name in ("overrides", "config_dirs"):
        need(texts(parameters.get(name, [])), f"buildDefinition.externalParameters.{name} must be a list of texts")
    needed = definition.get("resolvedDependencies")
    need(isinstance(needed, list) and all(map(artifact, needed)), "buildDefinition.resolvedDependencies is malformed")
    for commit in (each["digest"].get("gitCommit") for each in needed if "digest" in each):
        need(commit is None or bool(COMMIT.fullmatch(commit)), "a gitCommit must be a commit's name in hex")
    need(isinstance(mapping(run.get("builder")).get("id"), str), "runDetails.builder.id must be a URI")
    made = run.get("byproducts")
    need(
        isinstance(made, list) and all(artifact(each, sha256=True) for each in made),
        "runDetails.byproducts is malformed",
    )


def artifact(value: Any, sha256: bool = False) -> bool:
    """Say whether this is an in-toto resource descriptor with a name. sha256: it must have such a digest."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    digests = value.get("digest", {})
    plain = isinstance(digests, dict) and all(isinstance(each, str) for each in digests.values())
    notes = value.get("annotations", {})
    told = isinstance(value.get("uri", ""), str) and isinstance(notes, dict) and texts(notes.get("changed", []))
    return plain and told and (not sha256 or bool(SHA256.fullmatch(digests.get("sha256", ""))))


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def source_of(statement: Mapping[str, Any]) -> tuple[str | None, bool, tuple[str, ...]]:
    """Return the commit that was built, whether the sources differed from it, and which files did."""
    needed = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    found = next((each for each in needed if each["name"] == "source"), {})
    notes = found.get("annotations", {})
    commit = found.get("digest", {}).get("gitCommit")
    return commit, bool(notes.get("dirty", commit is None)), tuple(notes.get("changed", []))


def source_words(statement: Mapping[str, Any]) -> str:
    """Say what was built, in a line."""
    commit, dirty, changed = source_of(statement)
    if commit is None:
        return "sources in no git repository: nobody can tell which"
    if not dirty:
        return f"commit {commit}, clean"
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"commit {commit}, DIRTY: never committed were {', '.join(changed[:3]) or 'some changes'}{more}"


def builder_of(statement: Mapping[str, Any]) -> tuple[str, str]:
    """Return the builder's id, and in words which SLSA build level a key's signature over its word gives."""
    builder = str(statement["predicate"]["runDetails"]["builder"]["id"])
    if builder == LOCAL:
        return builder, "SLSA build level 1: whoever ran the build could have written anything"
    return builder, (
        "SLSA build level 1 by a key's signature: its owner could have written this; level 2 and 3 take the platform's "
        "own identity (--identity)"
    )
