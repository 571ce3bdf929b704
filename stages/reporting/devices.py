"""A sheet for each device: its gates with their bounds, and where its numbers are from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.reporting.facts import Device, Facts, Gate, part
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import known, scrolling, verdict
from stages.reporting.words import NONE_ANSWERED, RUNTIMES, amount, count, named


def sheets(facts: Facts) -> Html:
    """The sheets, folded but for the devices that are blocked while these are few."""
    few = sum(device.verdict != "passed" for device in facts.devices) <= 3
    return element(
        "div", [_sheet(device, few and device.verdict != "passed") for device in facts.devices], class_="sheets"
    )


def _sheet(device: Device, unfolded: bool) -> Html:
    said = f"{len(device.gates) - len(device.failed)} of {count(len(device.gates), 'gate')} passed"
    return element(
        "details",
        element("summary", element("b", foreign(device.title)), " ", verdict(device), element("small", said)),
        _gates(device),
        _profile(device),
        id=f"device-{device.name}",
        open=unfolded,
        data_device=device.name,
        data_verdict=device.verdict,
        data_runtime=device.runtime,
    )


def _gates(device: Device) -> Html:
    if not device.gates:
        return element("p", "No gate is set.")
    ordered = sorted(device.gates, key=lambda gate: gate.passed)
    rows = [_gate(device, gate) for gate in ordered]
    head = element(
        "tr",
        element("th", "Gate", scope="col"),
        element("th", "Value", scope="col", class_="number"),
        element("th", "Bound", scope="col", class_="number"),
        element("th", "Known by", scope="col"),
        element("th", "Verdict", scope="col"),
    )
    table = element("table", element("thead", head), element("tbody", rows), class_="small")
    return scrolling(table, f"Gates of {device.title}")


def _gate(device: Device, gate: Gate) -> Html:
    sign = "\u2265" if gate.kind == "min" else "\u2264"
    word = "predicted" if gate.predicted else "measured"
    end = f"{gate.end} end{', judged' if device.judged(gate) else ''}"
    value = NONE_ANSWERED if device.retains_nothing(gate) else amount(gate.metric, gate.value)
    return element(
        "tr",
        element(
            "th",
            foreign(named(gate.metric, gate.task)),
            element("small", end) if gate.end != "value" else None,
            scope="row",
        ),
        element("td", value, class_=f"number {word}{'' if gate.passed else ' bad'}"),
        element("td", f"{sign} {amount(gate.metric, gate.bound, True)}", class_="number"),
        element("td", known(gate.predicted)),
        element("td", "passed" if gate.passed else element("strong", "failed", class_="bad")),
    )


def _profile(device: Device) -> Html | None:
    """What is known of the device, each number with its source and how sure it is."""
    profile = device.profile
    sources = part(profile, "sources")
    rows = []
    for key, value in _numbers(profile):
        source = sources.get(key)
        told = source if isinstance(source, Mapping) else {}
        rows.append(
            element(
                "tr",
                element("th", foreign(key), scope="row", class_="name"),
                element("td", foreign(value), class_="number"),
                element("td", foreign(told.get("confidence", ""))),
                element("td", foreign(told.get("source", ""))),
            )
        )
    facts = [
        ("Runtime", RUNTIMES.get(device.runtime, device.runtime)),
        ("Chip", device.chip),
        ("Order of fallback", ", ".join(profile.get("compute_units") or profile.get("execution_providers") or [])),
        ("Minimum OS", str(profile.get("minimum_os") or "")),
        ("Bundle", device.bundle or "none"),
    ]
    pairs = element(
        "dl",
        [element("div", element("dt", name), element("dd", foreign(value))) for name, value in facts if value],
        class_="pairs",
    )
    if not rows:
        return pairs
    head = element(
        "tr",
        [
            element("th", name, scope="col", class_="number" if name == "Value" else None)
            for name in ("Number", "Value", "Confidence", "Source")
        ],
    )
    table = element("table", element("thead", head), element("tbody", rows), class_="small")
    return element("div", pairs, scrolling(table, f"Profile of {device.title}"))


def _numbers(profile: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The numbers of a profile by dotted key, those that are known."""
    memory = profile.get("memory_gib")
    if memory is not None:
        yield "memory_gib", str(memory)
    for group in ("hardware", "thermal"):
        yield from _flat(part(profile, group), f"{group}.")


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)
