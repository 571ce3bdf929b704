"""What a build came to: for the terminal, for `--json`, for the report and for MLflow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.gates import failed_gates
from pipelines.ledger import Record
from pipelines.plan import Node
from pipelines.sharing import Sharing


@dataclass
class NodeSummary:
    """status: built, cached, failed or skipped. device: None where all devices share it. memory_mib: its peak.

    needs: the nodes whose results it was given. summary: what its stage says of its result. figures: {"name", "path"}
    each, the path relative to the project.
    """

    name: str
    stage: str
    device: str | None
    devices: list[str]
    status: str
    seconds: float
    key: str | None
    digest: str | None
    size: int = 0
    why: str = ""
    error: str = ""
    memory_mib: int = 0
    summary: str = ""
    figures: list[dict[str, str]] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """nodes: in the order in which they ended. gates and metrics: by device. bundles: {device: path in the project}.

    metrics: of stages that are per device. gates: of all; those of a stage that is one for all devices, for each.
    device: None where there are no devices.
    unrecorded: why dvc.yaml and its like do not tell of this build, or "".
    report: the pipeline's own report function, as package.module.function, or None. shared: what devices
    spared each other; None where that was not counted. devices: {name: its profile}, as chosen. build: its number in
    the history.
    """

    nodes: list[NodeSummary] = field(default_factory=list)
    gates: list[dict[str, Any]] = field(default_factory=list)
    bundles: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    measurements: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0
    unrecorded: str = ""
    report: str | None = None
    shared: Sharing | None = None
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    build: int | None = None

    @property
    def passed(self) -> bool:
        """Whether every node ended well, every gate passed, and the build is recorded."""
        ended = all(node.status in ("built", "cached") for node in self.nodes)
        return ended and all(gate["passed"] for gate in self.gates) and not self.unrecorded

    def add(
        self,
        node: Node,
        all_devices: tuple[str, ...],
        status: str,
        record: Record | None = None,
        seconds: float = 0.0,
        key: str | None = None,
        why: str = "",
        error: str = "",
        memory_mib: int = 0,
        summary: str = "",
    ) -> NodeSummary:
        """Note how a node ended."""
        own = node.stage.per and (node.stage.bundle or set(node.devices) != set(all_devices))
        entry = NodeSummary(
            name=node.name,
            stage=node.stage.name,
            device=node.devices[0] if own else None,
            devices=list(node.devices),
            status=status,
            seconds=round(seconds, 3),
            key=record.key if record else key,
            digest=record.tree.digest if record else None,
            size=record.tree.size if record else 0,
            why=why,
            error=error,
            memory_mib=memory_mib,
            summary=summary,
            figures=[{"name": name, "path": f"{node.folder}/{name}"} for name in node.stage.figures] if record else [],
            needs=list(dict.fromkeys(node.inputs.values())),
        )
        self.nodes.append(entry)
        if record and node.stage.bundle:
            self.bundles[node.devices[0]] = node.folder
        return entry

    def judge(self, node: Node, metrics: dict[str, Any]) -> list[dict[str, Any]]:
        """Note the metrics and gates of a node's devices; return the gates that failed."""
        if node.stage.per:
            self.metrics.update(dict.fromkeys(node.devices, metrics))
        for device in node.devices or (None,):
            self.gates += [{"device": device, "task": None, **gate} for gate in metrics["gates"]]
        return failed_gates(metrics)

    @property
    def judged(self) -> list[str | None]:
        """The devices that there are metrics or gates of."""
        return judged(self.metrics, self.gates)

    def to_json(self) -> dict[str, Any]:
        """Return the summary for machines; see design.md."""
        return {**{key: plain(value) for key, value in asdict(self).items()}, "passed": self.passed}


def completed(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `to_json` returned, perhaps to an older version: a field that it did not know has its default."""
    empty = asdict(NodeSummary("", "", None, [], "", 0.0, None, None))
    return {**Summary().to_json(), **said, "nodes": [{**empty, **node} for node in said.get("nodes", ())]}


def judged(metrics: Mapping[str, Any], gates: Iterable[Mapping[str, Any]]) -> list[str | None]:
    """Return the devices that there are metrics or gates of; None stands for a build without devices."""
    return list(dict.fromkeys([*metrics, *(gate["device"] for gate in gates)]))


def plain(value: Any) -> Any:
    """Return what JSON can hold: it has no infinite numbers and no NaN, which become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
