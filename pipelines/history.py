"""What was built: an entry for each build in .tapeout/builds, so that results can be traced, named and kept.

An entry holds the key of each node, not its result. A build that changes nothing since the last one leaves no entry, so
that a warm build reads one small file and writes none.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, suggestion
from pipelines.plan import Node
from pipelines.project import Project
from pipelines.sealed import read_sealed, write_sealed
from pipelines.spec import StageSpec
from pipelines.summary import Summary

PAUSE = 2.0  # s between two writings of a build that runs: an entry is as long as its plan
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Build:
    """began: seconds since 1970. passed: None where the build was stopped or killed.

    nodes: {node: key}, with None for a node that has no result. built: the nodes that this build made; the others were
    cached. dropped: `tapeout gc` has removed what no other build needed. devices: {node: those that it is for}, of
    stages that are per device. stages: {stage: {"config", "gates", "answers"}}, as the pipeline had them, if it had.
    """

    number: int
    began: int
    name: str | None
    overrides: tuple[str, ...]
    passed: bool | None
    nodes: Mapping[str, str | None]
    built: tuple[str, ...]
    dropped: bool = False
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        return {key for key in self.nodes.values() if key}

    @property
    def made(self) -> set[str]:
        """The keys of what this build made, not only took from the store."""
        return {key for node in self.built if (key := self.nodes.get(node))}

    @property
    def when(self) -> str:
        """When it began, in this machine's time."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.began))

    @property
    def title(self) -> str:
        """The build in words: "build 3 (release-1), 2026-07-14 03:31, quantize=int8"."""
        name = f" ({self.name})" if self.name else ""
        return f"build {self.number}{name}, {self.when}, {' '.join(self.overrides) or 'no overrides'}"

    def to_json(self) -> dict[str, Any]:
        """Return the build for machines; times in UTC."""
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began))
        cached = sum(key is not None for key in self.nodes.values()) - len(self.built)
        return {**asdict(self), "began": began, "built": len(self.built), "cached": cached}


class History:
    """The builds of a checkout, in the folder `folder`. Changed only by who has the checkout's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def builds(self) -> list[Build]:
        """All builds as they were when first asked for, the newest first. A name given twice is the newer one's."""
        found: list[Build] = []
        names: set[str] = set()
        for number in self.numbers():
            build = self.get(number)
            if build is not None:
                found.append(replace(build, name=None) if build.name in names else build)
                names |= {build.name} if build.name else set()
        return found

    def get(self, number: int) -> Build | None:
        """Return a build, or None where its entry is damaged."""
        value = read_sealed(self.path(number))
        try:
            if value is None:
                return None
            value["overrides"], value["built"] = tuple(value["overrides"]), tuple(value["built"])
            value["devices"] = {node: tuple(devices) for node, devices in value.get("devices", {}).items()}
            return Build(**value)
        except (TypeError, KeyError):  # written by another version
            return None

    def numbers(self) -> list[int]:
        """Return the numbers of all entries, the newest first."""
        return sorted((int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdecimal()), reverse=True)

    def damaged(self) -> list[int]:
        """Return the numbers of the entries that cannot be read."""
        return [number for number in self.numbers() if self.get(number) is None]

    def latest(self) -> Build | None:
        """Return the newest build, or None."""
        return next(filter(None, map(self.get, self.numbers())), None)

    def maker(self, key: str) -> Build | None:
        """Return the newest build that made the result of `key`, or None."""
        return next((build for build in self.builds if key in build.made), None)

    def key_of(self, node: str, devices: tuple[str, ...] = ()) -> str | None:
        """Return the key that a node had in the newest build that has a result of it, or None.

        devices: if any are given, a build counts where the node was for one of them, or where that was not noted.
        """
        for build in self.builds:
            apart = devices and node in build.devices and not set(devices) & set(build.devices[node])
            if not apart and (key := build.nodes.get(node)):
                return key
        return None

    def write(self, build: Build) -> None:
        """Write an entry. Raises StoreError."""
        write_sealed(self.path(build.number), asdict(build))

    def drop(self, build: Build) -> None:
        """Remove an entry."""
        self.path(build.number).unlink(missing_ok=True)

    def named(self, name: str) -> list[Build]:
        """Return all builds to which the name was given, the newest first. Raises ConfigError where there is none."""
        builds = list(filter(None, map(self.get, self.numbers())))
        found = [build for build in builds if build.name == name]
        if not found:
            names = {build.name for build in builds if build.name}
            raise ConfigError(f"no build is called '{name}'", hint=suggestion(name, names, "names"))
        return found

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06}.json"


class Journal:
    """Writes the entry of one build: while results come in, so that a killed build has one, and when it has ended."""

    def __init__(self, history: History, nodes: Mapping[str, Node], overrides: tuple[str, ...]) -> None:
        self.history = history
        self.nodes = tuple(nodes)
        self.devices = {name: node.devices for name, node in nodes.items() if node.stage.per}
        self.stages = {node.stage.name: told(node.stage) for node in nodes.values()}
        self.overrides = overrides
        self.began = int(time.time())
        self._number = 0
        self._written = -PAUSE

    def note(self, summary: Summary) -> None:
        """Write what a build that runs has come to, unless that was done just now."""
        now = time.monotonic()
        if now - self._written > PAUSE:
            self._written = now
            self._write(summary, None, None)

    def finish(self, summary: Summary, name: str | None = None) -> Build:
        """Write the entry of a build that has ended, unless it is what the last one was. A name goes to what passed."""
        name = name if summary.passed else None
        last = None if self._number else self.history.latest()
        if last is not None and (name is None or last.name in (None, name)):
            same = self._entry(last.number, summary, summary.passed, last.name)
            if not same.built and replace(same, began=last.began, built=last.built) == last:
                if name not in (None, last.name):
                    last = replace(last, name=name)
                    self.history.write(last)
                return last
        return self._write(summary, summary.passed, name)

    def _write(self, summary: Summary, passed: bool | None, name: str | None) -> Build:
        self._number = self._number or max(self.history.numbers(), default=0) + 1
        build = self._entry(self._number, summary, passed, name)
        self.history.write(build)
        return build

    def _entry(self, number: int, summary: Summary, passed: bool | None, name: str | None) -> Build:
        ended = {entry.name: entry.key for entry in summary.nodes if entry.status in ("built", "cached")}
        nodes = {name: ended.get(name) for name in self.nodes}
        built = tuple(entry.name for entry in summary.nodes if entry.status == "built")
        devices, stages = self.devices, self.stages
        return Build(number, self.began, name, self.overrides, passed, nodes, built, devices=devices, stages=stages)


def told(stage: StageSpec) -> dict[str, str]:
    """Return what an entry tells of a stage: its configuration group, and which files others can be compared by."""
    found = {"config": stage.config, "gates": stage.gates, "answers": stage.answers}
    return {key: value for key, value in found.items() if value}


def history_of(project: Project) -> History:
    return History(project.state / "builds")


def check_name(name: str) -> None:
    """Raise ConfigError for what cannot name a build."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name '{name}' is no name for a build", hint="letters, digits, '.', '_' and '-' only")


def check_free(history: History, name: str, overrides: tuple[str, ...]) -> None:
    """Raise ConfigError where another configuration's build is called `name`: gc might then remove what that needs."""
    held = next((build for build in history.builds if build.name == name), None)
    if held is not None and held.overrides != overrides:
        raise ConfigError(
            f"--name {name}: so is {held.title}",
            hint=f"choose another name, or take it away from that one: tapeout gc --unname {name}",
        )


def table(builds: list[Build]) -> Iterator[str]:
    """Yield the lines of `tapeout builds`."""
    head = ("build", "began", "name", "result", "built", "cached", "overrides")
    rows: list[tuple[str, ...]] = [head]
    for build in builds:
        result = {True: "passed", False: "failed", None: "unfinished"}[build.passed]
        counts = build.to_json()
        overrides = " ".join(build.overrides) or "-"
        result += ", dropped" if build.dropped else ""
        counted = (str(counts["built"]), str(counts["cached"]))
        rows.append((str(build.number), build.when, build.name or "-", result, *counted, overrides))
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
