"""The matrix of devices: who passes, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.reporting.facts import Device, Facts, tasks, unanswered, worst
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import VERDICTS, ends, scrolling, verdict
from stages.reporting.words import ABSENT, NONE_ANSWERED, RUNTIMES, SPEEDS, mebibytes, number, points, rounded

COLUMNS = ("encode_ms", "first_token_ms", "tokens_per_s", "tokens_per_s_15min", "peak_memory_mib", "energy_j")


def matrix(facts: Facts) -> Html:
    """A row for each device."""
    shown = [name for name in COLUMNS if any(device.estimate(name) for device in facts.devices)]
    head = [
        _head("Device", "text"),
        _head("Verdict", "text"),
        _head("Gates", "number", "passed of all"),
        _head("Size", "number", "MiB, measured"),
        _head("Worst retention", "number", "%, measured; its 95 % interval and task"),
        *(_head(SPEEDS[name][0], "number", f"{SPEEDS[name][1]}, predicted", "predicted") for name in shown),
        _head("Risks", "number", "static rules"),
    ]
    rows = [_row(device, shown) for device in facts.devices]
    table = element(
        "table", element("thead", element("tr", head)), element("tbody", rows), class_="matrix", id="matrix"
    )
    return scrolling(table, "Devices, a row each")


def estimate_cell(device: Device, name: str) -> Html:
    """A prediction with its interval below, marked where it breaks its budget."""
    found = device.estimate(name)
    if found is None:
        return element("td", ABSENT, class_="number predicted", data_sort="")
    bad = any(not gate.passed and gate.metric.rpartition(".")[2] in (name, _budget_of(name)) for gate in device.gates)
    return element(
        "td",
        element("b", number(found.value), data_figure=f"{device.name}/predicted/{name}"),
        element("small", ends(found) or "no interval"),
        class_=f"number predicted{' bad' if bad else ''}",
        data_sort=found.value,
    )


def _row(device: Device, shown: list[str]) -> Html:
    passed = len(device.gates) - len(device.failed)
    found = worst(device.metrics)
    bound = device.budget("size_mib")
    large = any(gate.metric in ("size_bytes", "budget.size_mib") for gate in device.failed)
    return element(
        "tr",
        element(
            "th",
            element("a", foreign(device.title), href=f"#device-{device.name}"),
            element(
                "small", foreign(" · ".join(filter(None, (device.chip, RUNTIMES.get(device.runtime, device.runtime)))))
            ),
            scope="row",
            data_sort=device.title.lower(),
        ),
        element("td", verdict(device), data_sort=VERDICTS[device.verdict]),
        element(
            "td",
            element("b", f"{passed}/{len(device.gates)}", data_figure=f"{device.name}/gates"),
            class_=f"number{' bad' if device.failed else ''}",
            data_sort=-len(device.failed),
        ),
        element(
            "td",
            element("b", mebibytes(device.size), data_figure=f"{device.name}/size_bytes"),
            element("small", f"of {rounded(bound)}") if bound else None,
            class_=f"number{' bad' if large else ''}",
            data_sort=device.size if device.size is not None else "",
        ),
        _retention(device, found),
        *(estimate_cell(device, name) for name in shown),
        element(
            "td",
            element("b", number(device.risk_count), data_figure=f"{device.name}/risks"),
            class_="number",
            data_sort=device.risk_count if device.risk_count is not None else "",
        ),
        data_device=device.name,
        data_verdict=device.verdict,
        data_runtime=device.runtime,
    )


def _retention(device: Device, found: tuple[str, Mapping[str, Any]] | None) -> Html:
    if found is None:
        none = any(unanswered(task) for task in tasks(device.metrics).values())
        return element("td", ABSENT, element("small", NONE_ANSWERED) if none else None, class_="number", data_sort="")
    task, row = found
    bad = any(not gate.passed and gate.metric.startswith("retention") for gate in device.gates)
    return element(
        "td",
        element("b", points(row["retention"]), data_figure=f"{device.name}/worst/retention"),
        element("small", f"{points(row.get('retention_low'))}–{points(row.get('retention_high'))} ", foreign(task)),
        class_=f"number{' bad' if bad else ''}",
        data_sort=row["retention"],
    )


def _head(title: str, kind: str, unit: str = "", class_: str = "") -> Html:
    return element(
        "th",
        element("span", title, class_="sorter", data_sorts=kind),
        element("small", unit) if unit else None,
        scope="col",
        class_=f"{kind} {class_}".strip(),
    )


def _budget_of(name: str) -> str:
    return {"peak_memory_mib": "memory_mib"}.get(name, name)
