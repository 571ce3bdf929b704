"""Latency, memory and size against their budgets, and how long the speed lasts: bars with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stages.reporting.charts import axis_for, bar, scale
from stages.reporting.facts import Device, Estimate, Facts, estimate, listed, part
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import are_alike, ends, intervals, known, scrolling
from stages.reporting.words import ABSENT, SPEEDS, number, rounded

SHOWN = ("encode_ms", "first_token_ms", "token_ms", "peak_memory_mib", "energy_j")
LASTING = {
    "tokens_per_s": "at once",
    "tokens_per_s_1min": "1 min",
    "tokens_per_s_5min": "5 min",
    "tokens_per_s_15min": "15 min",
}


def speed(facts: Facts) -> Html:
    """A chart for each figure, then what remains of the speed by context and in the heat."""
    predicted = {name: _predicted(facts, name) for name in SHOWN}
    shown = sorted(
        (name for name in SHOWN if predicted[name]), key=lambda name: len(predicted[name])
    )  # short ones first
    charts = [_bars(*SPEEDS[name][:2], predicted[name], name, True) for name in shown]
    found = {"in the heat": _lasting(facts), "by context": _contexts(facts)}
    tables = {name: table for name, table in found.items() if table is not None}
    parts = [
        element("div", [_sizes(facts), *charts], class_="charts"),
        _folded(f"Decoding {' and '.join(tables)}", element("div", tables.values(), class_="charts"), facts)
        if tables
        else None,
        _basis(facts),
    ]
    if not charts:
        parts.insert(0, element("p", "Nothing is predicted for these devices.", class_="lead"))
    return element("div", parts)


def _folded(title: str, inside: Html, facts: Facts) -> Html:
    """Tables of many devices are folded."""
    return element("details", element("summary", title), inside, open=len(facts.devices) <= 12)


def _predicted(facts: Facts, name: str) -> list[tuple[Device, Estimate]]:
    return [(device, each) for device in facts.devices if (each := device.estimate(name)) is not None]


def _sizes(facts: Facts) -> Html | None:
    """One row for all devices that get files of one size, under one budget."""
    groups: dict[tuple[float, float | None], list[Device]] = {}
    for device in facts.devices:
        if device.size is not None:
            groups.setdefault((device.size, device.budget("size_mib")), []).append(device)
    found = [
        (replace(group[0], title=listed([each.title for each in group], 4)), Estimate(size / 2**20))
        for (size, _), group in groups.items()
    ]
    return _bars("Size", "MiB", found, "size_mib", False) if found else None


def _bars(title: str, unit: str, found: Sequence[tuple[Device, Estimate]], name: str, predicted: bool) -> Html:
    """A row for each device, the worst first. The axis ends where the data do: a budget far above is in the text."""
    bounds = [bound for device, _ in found if (bound := device.budget(name)) is not None]
    values = [each.high if each.high is not None else each.value for _, each in found]
    most = max(values)
    lows = [each.low for _, each in found if each.low is not None]
    axis = axis_for([*values, *lows, *(bound for bound in bounds if bound <= 2 * most)])
    ordered = sorted(found, key=lambda pair: -pair[1].value)
    word, limit = ("predicted", "budget") if predicted else ("measured", "bound")
    drawn = any(axis.least <= bound <= axis.most for bound in bounds)
    estimates = [each for _, each in found]
    alike, rows = are_alike(estimates), []
    for device, each in ordered:
        bound = device.budget(name)
        bad = bound is not None and (each.high if each.high is not None else each.value) > bound
        between = ends(each, alike)
        words = f"{number(each.value)} {unit} {word}" + (f", {ends(each)}" if between else "")
        words += f"; {limit} {rounded(bound)}" if bound is not None else ""
        rows.append(
            element(
                "tr",
                element("th", foreign(device.title), scope="row"),
                element("td", bar(axis, each.value, each.low, each.high, bound, predicted, bad, words), class_="track"),
                element(
                    "td",
                    element("b", number(each.value)),
                    element("small", between) if between else None,
                    class_=f"number {word}{' bad' if bad else ''}",
                ),
                element("td", rounded(bound) if bound is not None else ABSENT, class_="number budget"),
                **(
                    {"data_device": device.name, "data_verdict": device.verdict, "data_runtime": device.runtime}
                    if predicted
                    else {}
                ),
            )
        )
    head = element(
        "tr",
        element("th", "Device", scope="col"),
        element("th", scale(axis), scope="col", class_="track", aria_label="Drawn"),
        element("th", word, scope="col", class_=f"number {word}"),
        element("th", limit, scope="col", class_="number budget"),
    )
    note = intervals(estimates)
    return element(
        "figure",
        element(
            "figcaption",
            element("h3", title, element("small", unit)),
            element(
                "p",
                known(predicted),
                f"; {note}" if note else "",
                f"; line: {limit}" if drawn else f"; {limit} beyond the axis" if bounds else f"; no {limit}",
                "; logarithmic" if axis.logarithmic else "",
            ),
        ),
        element("table", element("thead", head), element("tbody", rows), class_="bars" if alike else "bars mixed"),
    )


def _lasting(facts: Facts) -> Html | None:
    shown = [name for name in LASTING if any(device.estimate(name) for device in facts.devices)]
    if shown in ([], ["tokens_per_s"]):
        return None
    rows = [
        (device, [device.estimate(name) for name in shown])
        for device in facts.devices
        if any(device.estimate(name) for name in shown)
    ]
    return _table("Sustained decoding", "tokens/s, as the device heats up", [LASTING[name] for name in shown], rows)


def _contexts(facts: Facts) -> Html | None:
    every = {name for device in facts.devices for name in part(device.metrics, "by_context")}
    names = sorted((name for name in every if str(name).isdecimal()), key=int)
    if len(names) < 2:
        return None
    rows = [
        (device, [estimate(part(device.metrics, "by_context").get(name)) for name in names])
        for device in facts.devices
        if part(device.metrics, "by_context")
    ]
    return _table("Decoding by context", "tokens/s with so many tokens before", names, rows)


def _table(title: str, unit: str, names: Sequence[str], rows: Sequence[tuple[Device, list[Estimate | None]]]) -> Html:
    estimates = [each for _, found in rows for each in found if each is not None]
    alike = are_alike(estimates)
    head = element(
        "tr",
        element("th", "Device", scope="col"),
        [element("th", name, scope="col", class_="number predicted") for name in names],
    )
    body = [
        element(
            "tr",
            element("th", foreign(device.title), scope="row"),
            [_cell(each, alike) for each in found],
            data_device=device.name,
            data_verdict=device.verdict,
            data_runtime=device.runtime,
        )
        for device, found in rows
    ]
    table = element("table", element("thead", head), element("tbody", body))
    note = intervals(estimates)
    return element(
        "figure",
        element(
            "figcaption",
            element("h3", title, element("small", unit)),
            element("p", known(True), f"; {note}" if note else ""),
        ),
        scrolling(table, title),
    )


def _cell(each: Estimate | None, alike: bool) -> Html:
    if each is None:
        return element("td", ABSENT, class_="number predicted")
    between = ends(each, alike)
    return element(
        "td",
        element("b", number(each.value)),
        element("small", between) if between else None,
        class_="number predicted",
    )


def _basis(facts: Facts) -> Html | None:
    """On what the predictions rest, each sentence once with its devices."""
    said: dict[tuple[str, str], list[str]] = {}
    for device in facts.devices:
        for name, sentence in part(device.metrics, "basis").items():
            said.setdefault((name, str(sentence)), []).append(device.title)
    if not said:
        return None
    items = [
        element(
            "li",
            element("b", foreign(name)),
            ": ",
            foreign(sentence),
            " ",
            element("small", foreign(", ".join(titles))),
        )
        for (name, sentence), titles in said.items()
    ]
    return element("details", element("summary", "On what the predictions rest"), element("ul", items, class_="plain"))
