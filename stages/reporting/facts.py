"""What a build came to, read from its summary and its artifacts: the devices, their gates and what stands behind them.

Nothing here trusts a file to be there, or to be what this version writes: what cannot be read is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.report import Reported, ReportedNode
from stages.reporting.words import RUNTIMES, is_number

BUDGETS = {"memory_mib": "peak_memory_mib"}  # {budget: the prediction that it bounds}, where they differ


@dataclass(frozen=True)
class Estimate:
    """A prediction; low and high: the ends of its 90 % interval, or None. judged: they are no such interval but the
    range that a judgement gives, where no errors on held-out devices are known."""

    value: float
    low: float | None = None
    high: float | None = None
    judged: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a stage tells it: judged is there where it is so."""
        return {"value": self.value, "low": self.low, "high": self.high} | ({"judged": True} if self.judged else {})


@dataclass(frozen=True)
class Gate:
    """A bound on a metric. end: of its interval, low or high, which `value` is; else value. help: what would mend it,
    in sentences."""

    metric: str
    task: str | None
    value: float | None
    bound: float
    kind: str
    passed: bool
    predicted: bool
    end: str = "value"
    help: tuple[str, ...] = ()


@dataclass(frozen=True)
class Device:
    """verdict: passed, failed (a gate did) or broken (a stage did). metrics: of its validation. risks: the lowering's
    findings, each {"risk", "count", "line", "source", ...}. profile: what the build knows of the device.
    """

    name: str
    title: str
    runtime: str
    chip: str
    verdict: str
    metrics: Mapping[str, Any]
    gates: tuple[Gate, ...]
    bundle: str | None
    risks: tuple[Mapping[str, Any], ...]
    profile: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> float | None:
        value = self.metrics.get("size_bytes")
        return float(value) if is_number(value) else None

    @property
    def failed(self) -> list[Gate]:
        return [gate for gate in self.gates if not gate.passed]

    @property
    def risk_count(self) -> int | None:
        """How many findings there are; None: not told."""
        value = self.metrics.get("risks")
        return int(value) if is_number(value) else None

    def estimate(self, name: str) -> Estimate | None:
        """What is predicted under a name, or None."""
        return estimate(part(self.metrics, "predicted").get(name))

    def budget(self, name: str) -> float | None:
        """The tightest bound that a gate sets on a prediction, or in MiB on the size as `size_mib`; None: none."""
        bounds = [gate.bound for gate in self.gates if self._bounds(gate, name)]
        if name == "size_mib":
            bounds += [gate.bound / 2**20 for gate in self.gates if gate.metric == "size_bytes" and gate.kind == "max"]
        return None if not bounds else min(bounds) if not more_is_better(name) else max(bounds)

    def judged(self, gate: Gate) -> bool:
        """Say whether the ends of what a gate bounds are judged, not those of an interval."""
        last = gate.metric.rpartition(".")[2]
        found = self.estimate(BUDGETS.get(last, last)) if gate.predicted else None
        return found is not None and found.judged

    def retains_nothing(self, gate: Gate) -> bool:
        """Say whether a gate asks for retention where the float model scores nothing."""
        task = tasks(self.metrics).get(gate.task or "", part(self.metrics, "overall"))
        return gate.metric.rpartition(".")[2].startswith("retention") and unanswered(task)

    def _bounds(self, gate: Gate, name: str) -> bool:
        kind, _, last = gate.metric.rpartition(".")
        wanted = "min" if more_is_better(name) else "max"
        return kind in ("budget", "predicted") and gate.kind == wanted and BUDGETS.get(last, last) == name


@dataclass(frozen=True)
class Evaluation:
    """One run of the shipped files over the questions, with the devices that share it. node: what made it, or None."""

    label: str
    devices: tuple[Device, ...]
    metrics: Mapping[str, Any]
    node: ReportedNode | None


class Facts:
    """A build, as the page shows it."""

    def __init__(self, build: Reported) -> None:
        self.build = build
        self.summary = build.summary

    @cached_property
    def devices(self) -> list[Device]:
        return [self._device(name) for name in self.build.devices]

    @property
    def passed(self) -> bool:
        return bool(self.summary["passed"])

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """The distinct evaluations, in the order of the devices."""
        groups: dict[str, list[Device]] = {}
        nodes: dict[str, ReportedNode | None] = {}
        for device in self.devices:
            if not tasks(device.metrics) and not part(device.metrics, "parity"):
                continue
            node = self.holder(device.name, "flips.jsonl")
            told = {key: device.metrics.get(key) for key in ("tasks", "overall", "parity", "fidelity", "questions")}
            mark = json.dumps([node.name if node else None, told], sort_keys=True)
            groups.setdefault(mark, []).append(device)
            nodes[mark] = node
        found: list[Evaluation] = []
        runtimes = [each[0].runtime for each in groups.values()]
        for mark, devices in groups.items():
            label = RUNTIMES.get(devices[0].runtime, devices[0].runtime) or devices[0].title
            if runtimes.count(devices[0].runtime) > 1:
                label += f" {1 + sum(each.devices[0].runtime == devices[0].runtime for each in found)}"
            found.append(Evaluation(label, tuple(devices), devices[0].metrics, nodes[mark]))
        return found

    def holder(self, device: str, name: str) -> ReportedNode | None:
        """The last node on a device's way whose artifact holds a file, or None."""
        held = [node for node in self.build.of(device) if node.folder and (node.folder / name).is_file()]
        return held[-1] if held else None

    def holders(self, name: str) -> list[ReportedNode]:
        """The nodes whose artifacts hold a file."""
        return [node for node in self.build.nodes if node.folder and (node.folder / name).is_file()]

    def title(self, device: str) -> str:
        return next((each.title for each in self.devices if each.name == device), device)

    def _device(self, name: str) -> Device:
        profile = self._profile(name)
        nodes = self.build.of(name)
        gates = tuple(_gate(each) for each in self.summary["gates"] if each["device"] == name)
        gated = all(gate.passed for gate in gates)
        ended = all(node.status in ("built", "cached") for node in nodes)
        broken = any(node.status == "failed" for node in nodes) or (gated and not ended)
        verdict = "broken" if broken else "passed" if gated else "failed"
        return Device(
            name=name,
            title=str(profile.get("title") or name),
            runtime=str(profile.get("runtime") or ""),
            chip=str(profile.get("chip") or ""),
            verdict=verdict,
            metrics=self.summary["metrics"].get(name) or self._measured(name),
            gates=gates,
            bundle=self.summary["bundles"].get(name),
            risks=tuple(self._risks(name)),
            profile=profile,
        )

    def _measured(self, name: str) -> Mapping[str, Any]:
        """What was measured of a device whose gates nobody got to."""
        found = read_json(self.holder(name, "metrics.json"), "metrics.json")
        return found if isinstance(found, Mapping) else {}

    def _profile(self, name: str) -> dict[str, Any]:
        """What the build knows of a device: the summary's, else all slices of its profile that its nodes were given."""
        found: dict[str, Any] = {}
        for node in self.build.nodes:
            if name in node.devices:
                found |= node.ingredients.get("device") or {}
        known = self.summary.get("devices", {})
        return {**found, **(known.get(name, {}) if isinstance(known, Mapping) else {})}

    def _risks(self, name: str) -> Iterator[Mapping[str, Any]]:
        """The findings of the lowering, from the manifest, or where the bundle was not made from the device's model."""
        for file in ("manifest.json", "model.json"):
            node = self.holder(name, file)
            found = read_json(node, file)
            risks = found.get("risks") if isinstance(found, Mapping) else None
            if isinstance(risks, list):
                yield from (each for each in risks if isinstance(each, Mapping))
                return


def _gate(told: Mapping[str, Any]) -> Gate:
    metric = str(told["metric"])
    help_ = told.get("help") or ()
    predicted = told.get("predicted")
    if predicted is None:
        predicted = metric.startswith(("predicted.", "budget.")) and metric != "budget.size_mib"
    return Gate(
        metric=metric,
        task=told.get("task"),
        value=told["value"],
        bound=told["bound"],
        kind=told["kind"],
        passed=bool(told["passed"]),
        predicted=bool(predicted),
        end=str(told.get("end") or "value"),
        help=(help_,) if isinstance(help_, str) else tuple(map(str, help_)),
    )


def estimate(told: Any) -> Estimate | None:
    """A prediction as a stage tells it: {"value", "low", "high"}, or a number alone."""
    if is_number(told):
        return Estimate(float(told))
    if isinstance(told, Mapping) and is_number(told.get("value")):
        low, high = (float(told[end]) if is_number(told.get(end)) else None for end in ("low", "high"))
        return Estimate(float(told["value"]), low, high, told.get("judged") is True)
    return None


def more_is_better(name: str) -> bool:
    return name.startswith("tokens_per_s")


def tasks(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """{task: its figures}."""
    return {name: task for name, task in part(metrics, "tasks").items() if isinstance(task, Mapping)}


def worst(metrics: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The task that retains least, of several the one whose interval begins lowest; None where none retains anything,
    because none was asked or because the float model answers none of them."""
    found = [
        (name, task)
        for name, task in tasks(metrics).items()
        if is_number(task.get("retention")) and not unanswered(task)
    ]
    return min(found, key=lambda pair: (*retained(pair[1]), pair[0]), default=None)


def retained(task: Mapping[str, Any]) -> tuple[float, float]:
    """By how much tasks are told apart: the retention, then the low end of its interval."""
    low = task.get("retention_low")
    return task["retention"], low if is_number(low) else task["retention"]


def unanswered(task: Mapping[str, Any]) -> bool:
    """Say whether the float model scores nothing, so that there is nothing to retain: its retention is told as 0."""
    return task.get("fp32") == 0


def part(metrics: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of the metrics; {} where it is missing, or something else."""
    value = metrics.get(key)
    return value if isinstance(value, Mapping) else {}


def read_json(node: ReportedNode | None, name: str) -> Any:
    """A file of a node's artifact, or None where it cannot be read."""
    if node is None or node.folder is None:
        return None
    try:
        return json.loads((node.folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSONL file; [] where it cannot be read."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError):
        return []
    return [each for each in found if isinstance(each, Mapping)]


def listed(titles: Sequence[str], most: int = 6) -> str:
    """Titles one after another, the last of many as a number."""
    if len(titles) <= most:
        return ", ".join(titles)
    return ", ".join(titles[: most - 1]) + f" and {len(titles) - most + 1} more"
