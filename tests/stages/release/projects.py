"""Projects with made-up builds, to release for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.project import Project
from stages.release.history.decision import Decision
from stages.release.history.entry import Entry
from stages.release.history.history import History
from stages.release.history.releasing import candidates, creation
from stages.release.history.state import State, state_of
from stages.release.layout import Releases
from stages.release.manifest import Manifest, read
from stages.release.signing.keys import SigningKey, load_signing_key, new_key
from stages.release.signing.statement import PREDICATE, STATEMENT
from tests.stages.release.bundles import make_bundle

FILES = {
    "pyproject.toml": "[project]\nname = 'demo'\n",
    "conf/config.yaml": "defaults: [{pipeline: none}, {tracking: TRACKING}, _self_]\n",
    "conf/pipeline/none.yaml": "stages: {load: {run: no.such.stage}}\n",
    "conf/tracking/none.yaml": "kind: none\nuri: ''\nexperiment: ''\n",
    "conf/tracking/mlflow.yaml": "kind: mlflow\nuri: sqlite:///mlflow.db\nexperiment: demo\n",
}
COMMIT = "1f" * 20


def make_project(root: Path, tracking: str = "none") -> Project:
    """A project whose key `release.key` is trusted; nothing was built yet."""
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content.replace("TRACKING", tracking))
    project = Project(root)
    new_key(key_file(project))
    trust(project, key_file(project))
    return project


def key_file(project: Project) -> Path:
    return project.root / "release.key"


def key_of(project: Project) -> SigningKey:
    return load_signing_key(key_file(project))


def trust(project: Project, key: Path) -> None:
    keys = Releases(project).keys
    keys.mkdir(parents=True, exist_ok=True)
    (keys / f"{key.name}.pub").write_bytes(key.with_name(f"{key.name}.pub").read_bytes())


def build(project: Project, device: str, version: str, **values: Any) -> Manifest:
    """A bundle where a build would leave it."""
    return make_bundle(project.artifacts / device, device, version, **values)


def statement_of(project: Project, device: str, dirty: bool = False, **parameters: str) -> dict[str, Any]:
    """The provenance that the build of artifacts/DEVICE would have written. parameters: others of the bundle's."""
    manifest = read(project.artifacts / device)
    digest = {"sha256": manifest.digest}
    bundle = {"name": manifest.name, "version": manifest.version, "device": manifest.device}
    annotations = {"dirty": dirty, "changed": ["stages/convert.py"] if dirty else []}
    return {
        "_type": STATEMENT,
        "subject": [{"name": "manifest.json", "digest": digest}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:tapeout:build:1",
                "externalParameters": {**bundle, **parameters, "overrides": [], "config_dirs": []},
                "internalParameters": {},
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": COMMIT}, "annotations": annotations}
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:tapeout:builder:local"},
                "byproducts": [{"name": "bundle", "digest": digest}],
            },
        },
    }


def released(project: Project, version: str, *devices: str, **values: Any) -> Decision:
    """Build and release a version for these devices (pixel-8), as `tapeout release create` does."""
    devices = devices or ("pixel-8",)
    for device in devices:
        build(project, device, version, **values)
    found = candidates(project, devices, None, False, statement_of)
    key = key_of(project)
    with History(Releases(project).history).writing([key.public]) as writing:
        decision = creation(Releases(project), state_of(writing.log.entries), found, key)
        if decision.changes:
            writing.append(key, "", "create", **decision.to_entry())
    return decision


def entries_of(project: Project) -> list[Entry]:
    return History(Releases(project).history).entries([key_of(project).public])


def state(project: Project) -> State:
    return state_of(entries_of(project))
