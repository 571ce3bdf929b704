"""The matrix of devices: who passes, and with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.reporting.facts import Device, Estimate, Facts, tasks, unanswered, worst
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import VERDICTS, are_alike, ends, intervals, scrolling, verdict
from stages.reporting.words import ABSENT, NONE_ANSWERED, RUNTIMES, SPEEDS, mebibytes, number, points, rounded

COLUMNS = ("encode_ms", "first_token_ms", "tokens_per_s", "tokens_per_s_15min", "peak_memory_mib", "energy_j")


def matrix(facts: Facts) -> Html:
    """A row for each device."""
    shown = {
        name: found
        for name in COLUMNS
        if (found := [each for device in facts.devices if (each := device.estimate(name)) is not None])
    }
    alike = {name: are_alike(found) for name, found in shown.items()}
    head = [
        _head("Device", "text"),
        _head("Verdict", "text"),
        _head("Gates", "number", "passed of all"),
        _head("Size", "number", "MiB, measured"),
        _head("Worst retention", "number", "%, measured; its 95 % interval and task"),
        *(_head(SPEEDS[name][0], "number", _known(name, found), "predicted") for name, found in shown.items()),
        _head("Risks", "number", "static rules"),
    ]
    rows = [_row(device, alike) for device in facts.devices]
    table = element(
        "table", element("thead", element("tr", head)), element("tbody", rows), class_="matrix", id="matrix"
    )
    return scrolling(table, "Devices, a row each")


def _known(name: str, found: Sequence[Estimate]) -> str:
    """The unit of a column, and how it is known."""
    judged = all(each.judged for each in found)
    return f"{SPEEDS[name][1]}, predicted{f'; {intervals(found)}' if judged else ''}"


def _predicted(device: Device, name: str, alike: bool) -> Html:
    """A prediction with its interval below, marked where it breaks its budget. alike: see `ends`."""
    found = device.estimate(name)
    if found is None:
        return element("td", ABSENT, class_="number predicted", data_sort="")
    bad = any(not gate.passed and gate.metric.rpartition(".")[2] in (name, _budget_of(name)) for gate in device.gates)
    return element(
        "td",
        element("b", number(found.value), data_figure=f"{device.name}/predicted/{name}"),
        element("small", ends(found, alike) or "no interval"),
        class_=f"number predicted{' bad' if bad else ''}",
        data_sort=found.value,
    )


def _row(device: Device, alike: Mapping[str, bool]) -> Html:
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
        *(_predicted(device, name, each) for name, each in alike.items()),
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
