"""What blocks the release, and the matrix of devices: who passes, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.reporting.facts import Device, Facts, Gate, listed, worst
from stages.reporting.markup import Html, element, foreign
from stages.reporting.words import ABSENT, RUNTIMES, SPEEDS, amount, count, mebibytes, named, number, percent, rounded

VERDICTS = {"passed": "passes", "failed": "blocked", "broken": "not built"}
COLUMNS = ("encode_ms", "first_token_ms", "tokens_per_s", "tokens_per_s_15min", "peak_memory_mib", "energy_j")


def blocking(facts: Facts) -> Html:
    """The gates that failed, each once with the devices that it failed on, and what would help."""
    groups: dict[tuple[Any, ...], list[Device]] = {}
    for device in facts.devices:
        for gate in device.failed:
            groups.setdefault((gate.metric, gate.task, gate.value, gate.bound, gate.kind, gate), []).append(device)
    items = [_blocked(gate, devices) for (*_, gate), devices in groups.items()]
    for device in facts.devices:
        if device.verdict == "broken":
            nodes = [node for node in facts.build.of(device.name) if node.status == "failed"]
            words = "; ".join(f"{node.name}: {node.error}" for node in nodes) or "what it needs was not built"
            items.append(element("li", element("p", foreign(device.title), " was not built: ", foreign(words))))
    items += [
        element("li", element("p", "The build is not recorded: ", foreign(facts.summary["unrecorded"])))
        for _ in [0]
        if facts.summary.get("unrecorded")
    ]
    if not items:
        return element("p", "Every gate of every device passed.", class_="lead")
    return element("ol", items, class_="blocking")


def matrix(facts: Facts) -> Html:
    """A row for each device."""
    shown = [name for name in COLUMNS if any(device.estimate(name) for device in facts.devices)]
    head = [
        _head("Device", "text"),
        _head("Verdict", "text"),
        _head("Gates", "number", "passed of all"),
        _head("Size", "number", "MiB, measured"),
        _head("Worst retention", "number", "95 % interval, measured"),
        *(_head(SPEEDS[name][0], "number", f"{SPEEDS[name][1]}, predicted", "predicted") for name in shown),
        _head("Risks", "number", "static rules"),
    ]
    rows = [_row(device, shown) for device in facts.devices]
    table = element(
        "table", element("thead", element("tr", head)), element("tbody", rows), class_="matrix", id="matrix"
    )
    return scrolling(table, "Devices, a row each")


def scrolling(table: Html, label: str, class_: str = "") -> Html:
    """A table that scrolls in a region of its own, which the keyboard can reach."""
    return element("div", table, class_=f"scroll {class_}".strip(), role="region", tabindex="0", aria_label=label)


def verdict(device: Device) -> Html:
    """Its verdict as a word with a sign: no colour alone."""
    sign = {"passed": "\u2713", "failed": "\u2715", "broken": "\u2013"}[device.verdict]
    return element(
        "span",
        element("span", sign, aria_hidden="true", class_="sign"),
        VERDICTS[device.verdict],
        class_=f"verdict {device.verdict}",
    )


def known(predicted: bool) -> Html:
    """How a figure is known: a word with a sign."""
    word = "predicted" if predicted else "measured"
    return element("span", word, class_=f"known {word}")


def estimate_cell(device: Device, name: str) -> Html:
    """A prediction with its interval below, marked where it breaks its budget."""
    found = device.estimate(name)
    if found is None:
        return element("td", ABSENT, class_="number predicted", data_sort="")
    bad = any(not gate.passed and gate.metric.rpartition(".")[2] in (name, _budget_of(name)) for gate in device.gates)
    ends = f"{number(found.low)}–{number(found.high)}" if found.low is not None else "no interval"
    return element(
        "td",
        element("b", number(found.value), data_figure=f"{device.name}/predicted/{name}"),
        element("small", ends),
        class_=f"number predicted{' bad' if bad else ''}",
        data_sort=found.value,
    )


def _row(device: Device, shown: list[str]) -> Html:
    passed = len(device.gates) - len(device.failed)
    found = worst(device.metrics)
    budget = device.budget("size_mib")
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
            element("small", f"of {rounded(budget)}") if budget else None,
            class_="number",
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
        return element("td", ABSENT, class_="number", data_sort="")
    task, row = found
    bad = any(not gate.passed and gate.metric.startswith("retention") for gate in device.gates)
    return element(
        "td",
        element("b", percent(row["retention"]), data_figure=f"{device.name}/worst/retention"),
        element("small", f"{percent(row.get('retention_low'))} to {percent(row.get('retention_high'))}"),
        element("small", foreign(task)),
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


def _blocked(gate: Gate, devices: list[Device]) -> Html:
    """One gate that failed: what it is, by how much, where, and what would help."""
    apart = abs(gate.value - gate.bound) if gate.value is not None else None
    side = "below" if gate.kind == "min" else "above"
    words = f"is {amount(gate.metric, gate.value)}"
    words += f" at the interval's {gate.end} end" if gate.end in ("low", "high") else ""
    words += f", {side} {amount(gate.metric, gate.bound, True)}"
    return element(
        "li",
        element(
            "p",
            element("strong", foreign(named(gate.metric, gate.task))),
            f" {words}" + (f" by {_apart(gate, apart)}" if apart is not None else "") + ". ",
            known(gate.predicted),
        ),
        element(
            "p",
            count(len(devices), "device"),
            ": ",
            foreign(listed([each.title for each in devices], 12)),
            class_="where",
        ),
        [element("p", foreign(each), class_="help") for each in gate.help],
    )


def _apart(gate: Gate, value: float) -> str:
    words = amount(gate.metric, value)
    return words.replace("\u202f%", " points") if words.endswith("%") else words


def _budget_of(name: str) -> str:
    return {"peak_memory_mib": "memory_mib"}.get(name, name)
