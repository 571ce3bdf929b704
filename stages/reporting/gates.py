"""What blocks the release: each gate that failed, by how much, on which devices, and what would help."""

from __future__ import annotations

from typing import Any

from pipelines.report import ReportedNode
from stages.reporting.facts import Device, Facts, Gate, listed
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import folded_text, known
from stages.reporting.words import NONE_ANSWERED, amount, count, named


def blocking(facts: Facts) -> Html:
    """The gates that failed, each once with the devices that it failed on, and what would help."""
    groups: dict[tuple[Any, ...], list[tuple[Device, Gate]]] = {}
    for device in facts.devices:
        for gate in device.failed:
            key = (gate.metric, gate.task, gate.bound, gate.kind, gate.end, gate.predicted, device.judged(gate))
            groups.setdefault(key, []).append((device, gate))
    helped: dict[tuple[str, ...], list[list[tuple[Device, Gate]]]] = {}
    for failed in groups.values():
        hints = tuple(dict.fromkeys(sentence for _, each in failed for sentence in each.help))
        helped.setdefault(hints, []).append(failed)
    items = [_blocked(gates, hints) for hints, gates in helped.items()]
    broken: dict[tuple[str, str], list[ReportedNode]] = {}
    for node in facts.build.nodes:
        if node.status == "failed":
            broken.setdefault((node.stage, node.error.partition("\n")[0]), []).append(node)
    items += [_broken(facts, nodes) for nodes in broken.values()]
    if unrecorded := facts.summary.get("unrecorded"):
        items.append(element("li", element("p", "The build is not recorded: ", foreign(unrecorded))))
    if not items:
        return element("p", "Every gate of every device passed.", class_="lead")
    return element("ol", items, class_="blocking")


def _broken(facts: Facts, nodes: list[ReportedNode]) -> Html:
    """Nodes of a stage that failed alike, with the first line of what the first of them said; the rest is folded."""
    devices = dict.fromkeys(name for node in nodes for name in node.devices)
    titles = [facts.title(name) for name in devices] or [each.title for each in facts.devices]
    name = nodes[0].name if len(nodes) == 1 else f"{nodes[0].stage} of {count(len(nodes), 'node')}"
    return element(
        "li",
        element("p", element("strong", foreign(name)), " failed"),
        element("p", foreign(listed(titles, 12)), class_="where"),
        folded_text(nodes[0].error),
    )


def _blocked(gates: list[list[tuple[Device, Gate]]], hints: tuple[str, ...]) -> Html:
    """Gates that failed and that the same would help: what was wanted, what each device has, and by how much."""
    return element(
        "li", [_missed(failed) for failed in gates], [element("p", foreign(each), class_="help") for each in hints]
    )


def _missed(failed: list[tuple[Device, Gate]]) -> list[Html]:
    first, gate = failed[0]
    wanted = f" must be at {'least' if gate.kind == 'min' else 'most'} {amount(gate.metric, gate.bound, True)}"
    whose = "judged range" if first.judged(gate) else "interval"
    wanted += f" at the {whose}'s {gate.end} end" if gate.end in ("low", "high") else ""
    values: dict[tuple[str, str], list[str]] = {}
    for device, each in sorted(failed, key=lambda pair: -_apart(pair[1])):
        values.setdefault(_found(device, each), []).append(device.title)
    found = [
        element(
            "p",
            element("b", value, class_="bad"),
            f"{by}: ",
            foreign(listed(titles, 12)),
            class_="where",
        )
        for (value, by), titles in values.items()
    ]
    return [
        element("p", element("strong", foreign(named(gate.metric, gate.task))), wanted, " ", known(gate.predicted)),
        *found,
    ]


def _found(device: Device, gate: Gate) -> tuple[str, str]:
    """What there is in place of what was wanted, and by how much it is apart."""
    if device.retains_nothing(gate):
        return NONE_ANSWERED, ""
    return amount(gate.metric, gate.value), f", {_difference(gate, gate.value)}" if gate.value is not None else ""


def _apart(gate: Gate) -> float:
    return abs(gate.value - gate.bound) if gate.value is not None else 0.0


def _difference(gate: Gate, value: float) -> str:
    words = amount(gate.metric, abs(value - gate.bound))
    words = words.replace("\u202f%", " points") if words.endswith("%") else words
    return f"{words} {'below' if gate.kind == 'min' else 'above'}"
