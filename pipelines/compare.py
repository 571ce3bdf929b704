"""`tapeout compare`: what differs between two builds of the history, device by device. Nothing is built.

`changes` returns, of two entries of the history, a value that JSON can hold:

    before, after  {"number", "name", "title", "overrides", "passed"} of each build
    overrides      {"before": [those that only that build had], "after": [...]}
    devices        [{"device": name, or None for a build without devices,
                     "before", "after": None, or why there is nothing of this device in that build,
                     "metrics": [{"metric": "tasks.ocr.retention", "before": number | None, "after", "change": number |
                                  None, "better": bool | None, "predicted": bool, "before_interval": [low, high] | None,
                                  "after_interval"}], all that both builds tell, the well-known first,
                     "gates": [{"metric", "task", "kind", "before": gate | None, "after": gate | None}], where the
                              verdict or the bound differs, or only one build has it,
                     "answers": [pipelines.answers.Paired as a mapping], over all questions and by task,
                     "unpaired": why there are no answers to hold against each other, or ""}]
    nodes          [{"stage", "devices", "before": {"node", "key", "digest"} | None, "after", "why": [texts]}], whose
                   results differ
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from pipelines.answers import other_questions, paired, read_answers
from pipelines.checkout import Checkout
from pipelines.compared_metrics import compare_gates, compare_metrics
from pipelines.compared_nodes import node_changes, stage_of
from pipelines.compared_words import ABSENT
from pipelines.errors import ConfigError
from pipelines.history import Build
from pipelines.past import Past
from pipelines.project import Project


def changes(project: Project, before: Build, after: Build) -> dict[str, Any]:
    """Return what differs; see above.

    Raises StoreError where figures of a build are not there any more, ConfigError for one that an older version made.
    """
    for build in (before, after):
        if build.nodes and not build.stages:
            raise ConfigError(
                f"{build.title}: the version that made it did not note what it can be compared by",
                hint=f"build it again: {shlex.join(['tapeout', 'build', *build.overrides])}",
            )
    checkout = Checkout(project, looking=True)
    old, new = Past(checkout, before), Past(checkout, after)
    pairs = Pairs(old, new)
    return {
        "before": said_of(before),
        "after": said_of(after),
        "overrides": {
            "before": [each for each in before.overrides if each not in after.overrides],
            "after": [each for each in after.overrides if each not in before.overrides],
        },
        "devices": [device_changes(old, new, device, pairs) for device in devices_of(after, before)],
        "nodes": list(node_changes(old, new)),
    }


def said_of(build: Build) -> dict[str, Any]:
    return {
        "number": build.number,
        "name": build.name,
        "title": build.title,
        "overrides": list(build.overrides),
        "passed": build.passed,
    }


def devices_of(*builds: Build) -> list[str | None]:
    """Return the devices of the builds, or None alone where they have none but gates all the same."""
    found = list(dict.fromkeys(device for build in builds for each in build.devices.values() for device in each))
    without = any(name not in build.devices for build in builds for name in nodes_with(build, "gates"))
    return [*found, *([None] if without else [])]


def nodes_with(build: Build, file: str) -> dict[str, str]:
    """Return {node: the file that its stage declares as `file`}."""
    found = {}
    for node in build.nodes:
        name = build.stages.get(stage_of(node), {}).get(file)
        if name:
            found[node] = name
    return found


def nodes_for(build: Build, device: str | None, file: str) -> dict[str, str]:
    """Return {node: file} of those that are for the device alone or with others; for None, of those for no device."""
    return {
        node: name
        for node, name in nodes_with(build, file).items()
        if (device is None and node not in build.devices) or device in build.devices.get(node, ())
    }


def device_changes(old: Past, new: Past, device: str | None, pairs: Pairs) -> dict[str, Any]:
    """Return what differs for one device."""
    (was, no_was), (now, no_now) = metrics_of(old, device), metrics_of(new, device)
    answers, unpaired = pairs.of(device)
    return {
        "device": device,
        "before": no_was or None,
        "after": no_now or None,
        "metrics": compare_metrics(was, now),
        "gates": compare_gates(was.get("gates", []), now.get("gates", [])) if was and now else [],
        "answers": answers,
        "unpaired": unpaired,
    }


def metrics_of(past: Past, device: str | None) -> tuple[dict[str, Any], str]:
    """Return what a build's gates files say of a device, or why they say nothing."""
    nodes = nodes_for(past.build, device, "gates")
    if not nodes:
        built = device is None or any(device in each for each in past.build.devices.values())
        return {}, "nothing with gates was built for it" if built else ABSENT
    found: dict[str, Any] = {"gates": []}
    for node, file in nodes.items():
        if past.build.nodes[node] is None:
            return {}, f"{node} has no result"
        value = past.json(node, file)
        found = {**found, **value, "gates": [*found["gates"], *value.get("gates", [])]}
    return found, ""


class Pairs:
    """Answers of both builds, each pair of files compared once, however many devices share it."""

    def __init__(self, old: Past, new: Past) -> None:
        self.old, self.new = old, new
        self._known: dict[Any, tuple[list[dict[str, Any]], str]] = {}

    def of(self, device: str | None) -> tuple[list[dict[str, Any]], str]:
        """Return a device's paired answers, or why there are none."""
        sides = [(past, self.only(past, device)) for past in (self.old, self.new)]
        for past, node in sides:
            if node is None:
                return [], f"build {past.build.number} has no answers of it"
        mark = tuple(node for _, node in sides)
        if mark not in self._known:
            self._known[mark] = self.compared(sides[0][1], sides[1][1])
        return self._known[mark]

    def only(self, past: Past, device: str | None) -> tuple[str, str] | None:
        """Return the node with a device's answers, and their file; None where nothing was asked."""
        nodes = nodes_for(past.build, device, "answers")
        made = [(node, file) for node, file in nodes.items() if past.build.nodes[node] and past.holds(node, file)]
        return made[-1] if made else None

    def compared(self, before: Any, after: Any) -> tuple[list[dict[str, Any]], str]:
        old, new = (
            read_answers(past.read(*node), f"build {past.build.number}: {node[0]}/{node[1]}")
            for past, node in ((self.old, before), (self.new, after))
        )
        other = other_questions(old, new)
        return ([], other) if other else ([asdict(each) for each in paired(old, new)], "")
