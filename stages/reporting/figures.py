"""The build in a line, its key figures, and the same for machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.reporting.facts import Device, Facts, listed, part, read_lines, retained, tasks, unanswered, worst
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import ends
from stages.reporting.words import ABSENT, NONE_ANSWERED, count, is_number, mebibytes, number, percent

PREDICTED = (
    "encode_ms",
    "first_token_ms",
    "token_ms",
    "tokens_per_s",
    "tokens_per_s_15min",
    "peak_memory_mib",
    "energy_j",
)


def headline(facts: Facts) -> str:
    """The verdict in words."""
    every = len(facts.devices)
    passing = sum(device.verdict == "passed" for device in facts.devices)
    if not every:
        return f"The build {'passed' if facts.passed else 'failed'}"
    if facts.passed:
        return f"Ready: {'all ' if every > 1 else ''}{count(every, 'device')} {'pass' if every != 1 else 'passes'}"
    if passing == every:
        return "Not recorded: all devices pass, the build is not"
    if every == 1:
        return "Blocked: the device does not pass"
    return f"Blocked: {passing} of {count(every, 'device')} {'pass' if passing != 1 else 'passes'}"


def key_figures(facts: Facts) -> Html:
    """Six figures that say most."""
    gates = [gate for device in facts.devices for gate in device.gates]
    passing = sum(device.verdict == "passed" for device in facts.devices)
    kept = sum(gate.passed for gate in gates)
    predicted = sum(gate.predicted for gate in gates)
    words = f"{len(gates) - predicted} measured, {predicted} predicted"
    shared = f"{count(len(facts.evaluations), 'evaluation')} of the files shared by them"
    flipped, whose = _flipped(facts)
    found = [
        ("Devices that pass", element("b", f"{passing}/{len(facts.devices)}", data_figure="devices"), shared, ""),
        ("Gates that pass", element("b", f"{kept}/{len(gates)}", data_figure="gates"), words, ""),
        _retention(facts),
        _largest(facts),
        _slowest(facts),
        ("Answers that flipped", element("b", number(flipped), data_figure="flips"), whose, ""),
    ]
    items = [
        element(
            "div",
            element("dt", name),
            element("dd", shown, element("small", foreign(words)) if words else None, class_=kind or None),
        )
        for name, shown, words, kind in found
    ]
    return element("dl", items, class_="figures")


def report_data(facts: Facts) -> dict[str, Any]:
    """The key figures: what the page shows under the same names in data-figure."""
    gates = [gate for device in facts.devices for gate in device.gates]
    build = facts.build.build
    return {
        "format": 1,
        "passed": facts.passed,
        "headline": headline(facts),
        "build": build.to_json() | {"nodes": len(build.nodes)} if build else None,
        "seconds": facts.summary["seconds"],
        "gates": {"passed": sum(gate.passed for gate in gates), "all": len(gates)},
        "flips": _flipped(facts)[0],
        "worst": {"device": found[0].name, **_kept(found[1])} if (found := _worst(facts)) else None,
        "nodes": {
            status: sum(node.status == status for node in facts.build.nodes)
            for status in ("built", "cached", "failed", "skipped")
        },
        "devices": [_device(device) for device in facts.devices],
    }


def _device(device: Device) -> dict[str, Any]:
    found = worst(device.metrics)
    predicted = {name: each.to_json() for name in PREDICTED if (each := device.estimate(name)) is not None}
    return {
        "name": device.name,
        "title": device.title,
        "runtime": device.runtime,
        "chip": device.chip,
        "verdict": device.verdict,
        "gates": {"passed": len(device.gates) - len(device.failed), "all": len(device.gates)},
        "size_bytes": device.size,
        "worst": _kept(found) if found else None,
        "predicted": predicted,
        "risks": device.risk_count,
        "bundle": device.bundle,
    }


def _kept(found: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a task retains, with the interval."""
    keys = {"retention": "retention", "low": "retention_low", "high": "retention_high"}
    return {"task": found[0], **{key: found[1].get(name) for key, name in keys.items()}}


def _retention(facts: Facts) -> tuple[str, Html, str, str]:
    found = _worst(facts)
    if found is None:
        none = any(unanswered(task) for device in facts.devices for task in tasks(device.metrics).values())
        return "Worst retention", element("b", ABSENT), NONE_ANSWERED if none else "not measured", ""
    task, row = found[1]
    between = f"{percent(row.get('retention_low'))} to {percent(row.get('retention_high'))}"
    shown = element("b", percent(row["retention"]), data_figure="worst/retention")
    alike = [
        each.title for each in facts.devices if (other := worst(each.metrics)) and _kept(other) == _kept((task, row))
    ]
    return "Worst retention", shown, f"{between}: {task}, {listed(alike, 2)}", ""


def _worst(facts: Facts) -> tuple[Device, tuple[str, Mapping[str, Any]]] | None:
    """The device whose worst task retains least, with that task; None where nothing is retained on any."""
    found = [(device, each) for device in facts.devices if (each := worst(device.metrics)) is not None]
    return min(found, key=lambda pair: retained(pair[1][1]), default=None)


def _largest(facts: Facts) -> tuple[str, Html, str, str]:
    found = [device for device in facts.devices if device.size is not None]
    if not found:
        return "Largest model", element("b", ABSENT), "not measured", ""
    device = max(found, key=lambda each: each.size or 0)
    return "Largest model", element("b", mebibytes(device.size), " MiB"), device.title, ""


def _slowest(facts: Facts) -> tuple[str, Html, str, str]:
    """The slowest decoding, or the slowest first token where that is all that is known."""
    for name, title, unit, worse in (
        ("tokens_per_s", "Slowest decode", "tokens/s", min),
        ("first_token_ms", "Slowest first token", "ms", max),
    ):
        found = [(each, device) for device in facts.devices if (each := device.estimate(name)) is not None]
        if found:
            each, device = worse(found, key=lambda pair: pair[0].value)
            between = f"{ends(each)}: " if each.low is not None else ""
            words = f"{between}{device.title}, predicted"
            return title, element("b", number(each.value), f" {unit}"), words, "predicted"
    return "Slowest decode", element("b", ABSENT), "nothing is predicted", ""


def _flipped(facts: Facts) -> tuple[int, str]:
    """The most questions of one evaluation whose score is another than the original's, and which evaluation that is."""
    found = [
        (len(read_lines(evaluation.node.folder / "flips.jsonl")), evaluation)
        for evaluation in facts.evaluations
        if evaluation.node and evaluation.node.folder
    ]
    if not found:
        return 0, "not recorded"
    most, evaluation = max(found, key=lambda pair: pair[0])
    asked = part(evaluation.metrics, "questions").get("count")
    of = f"of {count(int(asked), 'question')}, " if is_number(asked) else ""
    return most, f"{of}{evaluation.label}"
