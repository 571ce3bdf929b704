"""`tapeout report`: the last build as one self-contained page.

What the page shows is the pipeline's own matter: its `report` names a function(build: Reported) -> str of HTML. A
pipeline without one gets the page of pipelines/generic_report.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config import import_name
from pipelines.errors import ConfigError
from pipelines.files import write_file
from pipelines.history import Build, History, history_of
from pipelines.ledger import read_record
from pipelines.project import Project
from pipelines.sealed import read_sealed
from pipelines.summary import completed


@dataclass(frozen=True)
class ReportedNode:
    """A node of the build as its summary tells it, and what is left of it.

    needs: the nodes whose results it was given. folder: its artifact, or None where that is not here any more or is
    another build's. ingredients: all that went into its key; {} likewise. The rest: pipelines/summary.py.
    """

    name: str
    stage: str
    device: str | None
    devices: tuple[str, ...]
    status: str
    seconds: float
    key: str | None
    digest: str | None
    size: int
    why: str
    error: str
    memory_mib: int
    summary: str
    figures: tuple[Mapping[str, str], ...]
    needs: tuple[str, ...]
    folder: Path | None = None
    ingredients: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reported:
    """A build that has ended.

    summary: as `tapeout build --json` gives it. nodes: in the order in which they ended. build: its entry in the
    history, or None; before: the build before it that ended, or None. project: for what else the page wants to read.
    """

    summary: Mapping[str, Any]
    nodes: tuple[ReportedNode, ...]
    project: Project
    build: Build | None = None
    before: Build | None = None

    @property
    def devices(self) -> list[str]:
        """The devices that the build was for, as chosen."""
        named = [device for node in self.nodes for device in node.devices]
        return list(dict.fromkeys([*self.summary["devices"], *named]))

    def of(self, device: str) -> list[ReportedNode]:
        """The nodes that a device's bundle comes from: its own, and those that all share."""
        return [node for node in self.nodes if not node.devices or device in node.devices]


def write_report(project: Project) -> Path:
    """Write artifacts/report.html from the last build's summary; return its path. Raises ConfigError and StoreError."""
    source = project.state / "last.json"
    if not source.is_file():
        raise ConfigError("there is no build to report", hint="run 'tapeout build' first")
    summary = read_sealed(source)
    if summary is None:
        raise ConfigError(
            f"{source} is damaged: the last build's summary is not as it was written",
            hint="run 'tapeout build' again, which writes it",
        )
    target = project.artifacts / "report.html"
    write_file(target, report_of(project, summary))
    return target


def report_of(project: Project, summary: Mapping[str, Any], build: Build | None = None) -> bytes:
    """Return the page of a build. summary: of Summary.to_json. Raises ConfigError where its function is not there."""
    history, summary = history_of(project), completed(summary)
    build = build or entry_of(history, summary)
    reported = Reported(
        summary=summary,
        nodes=tuple(nodes_of(project, summary)),
        project=project,
        build=build,
        before=before(history, build),
    )
    return page_function(summary["report"])(reported).encode("utf-8", "replace")


def page_function(name: str | None) -> Callable[[Reported], str]:
    """Return the function that makes the page. Raises ConfigError."""
    if name is None:
        from pipelines.generic_report import page

        return page
    found: Callable[[Reported], str] = import_name(name, f"pipeline.report: {name}")
    return found


def nodes_of(project: Project, summary: Mapping[str, Any]) -> list[ReportedNode]:
    """Return the build's nodes, each with what is left of it here."""
    found = []
    makers = {node["digest"]: node["name"] for node in summary["nodes"] if node["digest"]}
    for node in summary["nodes"]:
        record = read_record(project.artifacts / "build" / f"{node['name']}.json")
        if record is not None and record.tree.digest != node["digest"]:
            record = None  # another build's
        folder = project.artifacts / "build" / node["name"]
        if not folder.is_dir() and node["device"] in summary["bundles"]:
            folder = project.root / summary["bundles"][node["device"]]  # where bundles lie
        ingredients = record.ingredients if record is not None else {}
        found.append(
            ReportedNode(
                name=node["name"],
                stage=node["stage"],
                device=node["device"],
                devices=tuple(node["devices"]),
                status=node["status"],
                seconds=node["seconds"],
                key=node["key"],
                digest=node["digest"],
                size=node["size"],
                why=node["why"],
                error=node["error"],
                memory_mib=node["memory_mib"],
                summary=node["summary"],
                figures=tuple(node["figures"]),
                needs=needs_of(node, ingredients, makers),
                folder=folder if record is not None and folder.is_dir() else None,
                ingredients=ingredients,
            )
        )
    return found


def needs_of(node: Mapping[str, Any], ingredients: Mapping[str, Any], makers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the nodes that a node needs: as the summary tells them, else by the digests of its inputs."""
    needs = node.get("needs")
    if not needs:  # it has none, or an older version told none
        digests = ingredients.get("inputs", {}).values()
        needs = [makers[digest] for digest in digests if digest in makers]
    names = needs.values() if isinstance(needs, Mapping) else needs
    return tuple(dict.fromkeys(names))


def entry_of(history: History, summary: Mapping[str, Any]) -> Build | None:
    """Return the newest entry whose results are the summary's, or None."""
    keys = {node["name"]: node["key"] for node in summary["nodes"] if node["status"] in ("built", "cached")}
    for build in history.builds:
        same = {name: key for name, key in build.nodes.items() if key} == keys
        if same if summary.get("build") is None else build.number == summary["build"]:
            return build
    return None


def before(history: History, build: Build | None) -> Build | None:
    """Return the newest earlier build that ended, or None."""
    if build is None:
        return None
    return next((each for each in history.builds if each.number < build.number and each.passed is not None), None)
