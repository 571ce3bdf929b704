"""What static rules found that a chip, a Neural Engine above all, may not like: each once, with its devices."""

from __future__ import annotations

from typing import Any

from stages.reporting.facts import Facts, listed
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import scrolling
from stages.reporting.words import count

KEYS = ("risk", "package", "function", "operator", "line", "source")


def risks(facts: Facts) -> Html:
    """A row for each finding."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for device in facts.devices:
        for each in device.risks:
            said = [str(each.get(name) or "") for name in KEYS]
            said[0] = said[0].replace(device.title, "the device")  # so that it is the same finding on all of them
            key = (*said, each.get("count") or 1)
            found.setdefault(key, []).append(device.title)
    if not found:
        return element("p", "Static rules found nothing in these files. No chip has run them.", class_="lead")
    rows = [
        element(
            "tr",
            element("td", foreign(risk), class_="risk"),
            element("td", times, class_="number"),
            element("td", foreign(" ".join(filter(None, (package, function))))),
            element("td", element("code", foreign(line))),
            element("td", foreign(listed(titles, 4))),
            element("td", foreign(source)),
        )
        for (risk, package, function, _, line, source, times), titles in sorted(
            found.items(), key=lambda item: item[0][0]
        )
    ]
    head = element(
        "tr",
        [
            element("th", name, scope="col", class_="number" if name == "Times" else None)
            for name in ("Risk", "Times", "In", "Line of the model", "Devices", "Source")
        ],
    )
    table = element("table", element("thead", head), element("tbody", rows), class_="small risks")
    return element(
        "div",
        element(
            "p",
            f"Static rules found {count(len(found), 'risk')}, a row each. Times: how many operators or weights of a "
            "device's files a row concerns. No chip has run these files.",
            class_="lead",
        ),
        scrolling(table, "Risks, a row each", "tall"),
    )
