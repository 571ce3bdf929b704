"""Where a bundle comes from: an in-toto statement with the SLSA v1 predicate, written by the build that made it.

A build notes, for each of its bundles, the revision of the sources, the overrides and the keys of all that went into
it; the statement is put together from that and from the ledger's records. It holds no time and no path of the machine:
the same sources give the same statement. Nobody has signed it: see stages/release.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines import params
from pipelines.checkout import Checkout
from pipelines.config import Config
from pipelines.digests import hash_file
from pipelines.errors import TapeoutError
from pipelines.keys import ENGINE
from pipelines.ledger import Ledger, Record
from pipelines.plan import Node, Plan, is_elsewhere
from pipelines.project import Project
from pipelines.revision import revision_of
from pipelines.sealed import read_sealed, write_sealed
from pipelines.summary import Summary

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:tapeout:build:1"
LOCAL = "urn:tapeout:builder:local"
MANIFEST = "manifest.json"
NOTED = "provenance.json"
SOURCE = "source"


def note(checkout: Checkout, config: Config, plan: Plan, summary: Summary) -> None:
    """Write down where the bundles come from that `summary` tells of. Those of other devices stay noted."""
    ended = {entry.name: entry for entry in summary.nodes if entry.status in ("built", "cached") and entry.key}
    bundles = [node for node in plan.nodes.values() if node.stage.bundle and node.name in ended]
    if not bundles:
        return
    path = checkout.project.state / NOTED
    known = read_sealed(path) or {}
    shared = {
        "revision": revision_of(checkout.project).to_json(),
        "overrides": [portable(checkout.project, each) for each in params.shared(config.overrides)],
        "config_dirs": [portable_path(checkout.project, folder) for folder in checkout.project.config_dirs],
        "builder": builder(),
    }
    fresh = {}
    for node in bundles:
        nodes = closure(plan, node)
        if all(each.name in ended for each in nodes):
            keys = {each.name: ended[each.name].key for each in nodes}
            inputs = {each.name: dict(input_files(checkout, each)) for each in nodes if each.stage.sources}
            fresh[node.devices[0]] = {**shared, "bundle": node.name, "nodes": keys, "inputs": inputs}
    noted = {**{device: value for device, value in known.items() if device not in fresh}, **fresh}
    if noted != known:
        write_sealed(path, noted)


def closure(plan: Plan, node: Node) -> list[Node]:
    """Return the node and all that it needs, in the plan's order."""
    wanted, waiting = {node.name}, [node]
    while waiting:
        for need in waiting.pop().inputs.values():
            if need not in wanted:
                wanted.add(need)
                waiting.append(plan.nodes[need])
    return [each for each in plan.nodes.values() if each.name in wanted]


def input_files(checkout: Checkout, node: Node) -> Iterator[tuple[str, str]]:
    """Yield (path, sha256) of each file that a node takes from outside the pipeline; of a URI (URI, "")."""
    for key in node.stage.sources:
        value = (node.config or {})[key]
        if is_elsewhere(value):
            if value is not None:
                yield str(value), ""
            continue
        inside = Path(checkout.project.root, str(value)).resolve().is_relative_to(checkout.project.root)
        for path, sha256 in checkout.keys.source_files(node, key, names_in_project=inside).items():
            yield (path if inside else f"{node.stage.config}.{key}/{path}".rstrip("/")), sha256


def portable(project: Project, override: str) -> str:
    """Return an override without paths of this machine: inside the project relative, elsewhere as <external>."""
    name, equals, value = override.partition("=")
    if not (equals and os.path.isabs(value.strip("'\""))):
        return override
    return f"{name}={portable_path(project, Path(value.strip(chr(39) + chr(34))))}"


def portable_path(project: Project, path: Path) -> str:
    return os.path.relpath(path, project.root) if path.is_relative_to(project.root) else f"<external>/{path.name}"


def builder() -> dict[str, Any]:
    """Return who builds: the workflow of a hosted platform where one says so, else just this machine."""
    found = os.environ
    identity = LOCAL
    if found.get("GITHUB_ACTIONS") == "true" and found.get("GITHUB_WORKFLOW_REF"):
        identity = f"{found.get('GITHUB_SERVER_URL', 'https://github.com')}/{found['GITHUB_WORKFLOW_REF']}"
    elif found.get("GITLAB_CI") == "true" and found.get("CI_JOB_URL"):
        identity = found["CI_JOB_URL"].partition("/-/jobs/")[0] + "/-/runners"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"id": identity, "version": {"engine": str(ENGINE), "python": python, "machine": platform.machine()}}


def read_statement(project: Project, device: str) -> dict[str, Any] | None:
    """Return the statement of the bundle that the last build has made for a device, or None.

    None too where artifacts/DEVICE is not what that build left there.
    """
    noted = (read_sealed(project.state / NOTED) or {}).get(device)
    if noted is None:
        return None
    ledger = Ledger(project.state / "ledger")
    records = {name: ledger.get(key) for name, key in noted["nodes"].items()}
    bundle = records.get(noted["bundle"])
    if bundle is None or any(record is None for record in records.values()):
        return None
    try:
        digest = hash_file(project.artifacts / device / MANIFEST)[0]
    except (OSError, TapeoutError):
        return None
    if MANIFEST not in bundle.tree.files or bundle.tree.files[MANIFEST].sha256 != digest:
        return None
    return statement(noted, {name: record for name, record in records.items() if record is not None}, device, digest)


def statement(noted: Mapping[str, Any], records: Mapping[str, Record], device: str, digest: str) -> dict[str, Any]:
    """Return the in-toto statement of the bundle whose manifest has the sha256 `digest`. See slsa.dev/spec/v1.0."""
    package = dict(records[noted["bundle"]].ingredients.get("config") or {})
    return {
        "_type": STATEMENT,
        "subject": [{"name": MANIFEST, "digest": {"sha256": digest}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "name": package.get("name"),
                    "version": package.get("version"),
                    "device": device,
                    "overrides": noted["overrides"],
                    "config_dirs": noted["config_dirs"],
                },
                "internalParameters": {name: settings(record) for name, record in records.items()},
                "resolvedDependencies": [*dependencies(noted, records)],
            },
            "runDetails": {
                "builder": noted["builder"],
                "byproducts": [
                    {"name": "bundle", "digest": {"sha256": digest}},
                    *(byproduct(name, record) for name, record in records.items()),
                ],
            },
        },
    }


def settings(record: Record) -> dict[str, Any]:
    """Return the resolved configuration that a node was given, and what it could read of the device's profile."""
    found = record.ingredients
    return {"config": found.get("config"), "device": found.get("device")}


def dependencies(noted: Mapping[str, Any], records: Mapping[str, Record]) -> Iterator[dict[str, Any]]:
    """Yield what the bundle was made of: the sources' revision, files from outside the pipeline, libraries."""
    revision = noted["revision"]
    changed = list(revision["changed"])
    yield {
        "name": SOURCE,
        **({"uri": revision["origin"]} if revision["origin"] else {}),
        **({"digest": {"gitCommit": revision["commit"]}} if revision["commit"] else {}),
        "annotations": {
            "dirty": bool(changed) or revision["commit"] is None,
            "changed": changed,
            "folder": revision["folder"],
        },
    }
    for files in noted["inputs"].values():
        for name, sha256 in sorted(files.items()):
            yield {"name": name, "digest": {"sha256": sha256}} if sha256 else {"name": name, "uri": name}
    libraries: dict[str, str] = {}
    for record in records.values():
        libraries |= record.ingredients.get("libraries") or {}
    for name, version in sorted(libraries.items()):
        yield {"name": name, "uri": f"pkg:{'generic' if name == 'python' else 'pypi'}/{name}@{version}"}


def byproduct(name: str, record: Record) -> dict[str, Any]:
    """Return what a node made: the digest of its artifact, its key, its stage's function, and its inputs' digests."""
    found = record.ingredients
    told = {"key": record.key, "run": found.get("run"), "inputs": dict(found.get("inputs") or {})}
    return {"name": name, "digest": {"sha256": record.tree.digest}, "annotations": told}
