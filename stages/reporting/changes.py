"""What changed since the build before: the figures of each device, gates that turned, and which nodes made it so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.compare import changes as compared
from pipelines.errors import TapeoutError
from pipelines.history import Build
from stages.reporting.facts import Facts, listed
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import known, scrolling
from stages.reporting.words import ABSENT, SPEEDS, amount, count, is_number, named, shortened

SHOWN = (  # figures that say most, and how they are called
    ("overall.artifact", "Score"),
    ("overall.retention", "Retention"),
    ("overall.flips", "Flipped"),
    ("fidelity.kl", "KL"),
    ("size_bytes", "Size"),
    ("risks", "Risks"),
    *((f"predicted.{name}", SPEEDS[name][0]) for name in ("encode_ms", "first_token_ms", "tokens_per_s")),
    ("predicted.peak_memory_mib", "Peak memory"),
)
MOST = 40  # nodes that are listed


def changes(facts: Facts) -> Html:
    """The comparison, or why there is none."""
    build, before = facts.build.build, facts.build.before
    if build is None or before is None:
        return element("p", "There is no build before this one to compare it with.", class_="lead")
    try:
        found = compared(facts.build.project, before, build)
    except TapeoutError as error:
        return element(
            "p", "The build before cannot be compared with this one: ", foreign(error.args[0]), class_="lead"
        )
    return element(
        "div",
        element("p", "Against ", foreign(_called(before)), ". ", _options(found["overrides"]), class_="lead"),
        _devices(facts, found["devices"]),
        _answers(facts, found["devices"]),
        _turned(facts, found["devices"]),
        _nodes(facts, found["nodes"]),
        element(
            "p", "Every figure: ", element("code", f"tapeout compare {before.number} {build.number}"), class_="lead"
        ),
    )


def _called(build: Build) -> str:
    return f"build {build.number}{f' ({build.name})' if build.name else ''} of {build.when}"


def _options(overrides: Mapping[str, Sequence[str]]) -> list[Any]:
    """The options that only one of both has."""
    pairs = (("Only then", overrides["before"]), ("Only now", overrides["after"]))
    return [[f"{word}: ", element("code", foreign(shortened(each))), ". "] for word, each in pairs if each]


def _devices(facts: Facts, devices: Sequence[Mapping[str, Any]]) -> Html:
    """A row for devices that changed alike, a column for each figure that changed anywhere."""
    rows: dict[tuple[Any, ...], list[str]] = {}
    changed = {name for device in devices for name, each in _figures(device).items() if each["change"]}
    shown = [(name, title) for name, title in SHOWN if name in changed]
    for device in devices:
        figures = _figures(device)
        gone, missing = (_nameless(device[side], device["device"]) for side in ("before", "after"))
        missing = None if gone else missing
        told = () if gone or missing else tuple(_mark(figures.get(name)) for name, _ in shown)
        rows.setdefault((gone, missing, told), []).append(_title(facts, device["device"]))
    if not shown and all(mark[:2] == (None, None) for mark in rows):
        return element("p", "No figure of any device changed.")
    head = element("tr", element("th", "Devices", scope="col"), [_head(name, title) for name, title in shown])
    body = []
    for (gone, missing, told), titles in rows.items():
        if gone or missing:
            words = f"{'then' if gone else 'now'}: {gone or missing}"
            cells = [element("td", foreign(words), colspan=len(shown) or None)]
        else:
            cells = [_cell(name, each) for (name, _), each in zip(shown, told, strict=True)]
        body.append(element("tr", element("th", foreign(listed(titles, 4)), scope="row"), cells))
    return scrolling(element("table", element("thead", head), element("tbody", body)), "What changed, by device")


def _nameless(why: str | None, device: str | None) -> str | None:
    """Why there is nothing of a device, in the same words for all: its nodes by their stages."""
    return why.replace(f"-{device}", "") if why else None


def _figures(device: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {each["metric"]: each for each in device["metrics"]}


def _mark(figure: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    return (figure["before"], figure["after"], figure["better"]) if figure else None


def _head(name: str, title: str) -> Html:
    predicted = name.startswith("predicted")
    return element("th", title, element("small", known(predicted)), scope="col", class_="number")


def _cell(name: str, told: tuple[Any, ...] | None) -> Html:
    """What it is now, and below what it was; better or worse in a word."""
    if told is None:
        return element("td", ABSENT, class_="number")
    before, after, better = told
    if before == after:
        return element("td", _amount(name, after), class_="number")
    word = {True: "better", False: "worse"}.get(better, "")
    return element(
        "td",
        element("b", _amount(name, after)),
        element(
            "small", f"was {_amount(name, before)} ", element("span", word, class_=f"change {word}") if word else None
        ),
        class_=f"number{' predicted' if name.startswith('predicted') else ''}",
    )


def _amount(name: str, value: Any) -> str:
    return amount(name, value) if is_number(value) else ABSENT


def _answers(facts: Facts, devices: Sequence[Mapping[str, Any]]) -> Html | None:
    """How the same questions were answered then and now, once for all devices that share the answers."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for device in devices:
        if device["answers"]:
            every = device["answers"][0]
            mark = tuple(every[key] for key in ("n", "difference", "low", "high", "answers_changed", "rose", "fell"))
            groups.setdefault(mark, []).append(_title(facts, device["device"]))
    items = [
        element(
            "li",
            f"{100 * changed:.1f} % of {count(n, 'answer')} changed; the score by {_signed(by)} points ",
            f"(95 % interval {_signed(low)} to {_signed(high)}): {rose} rose, {fell} fell. ",
            element("small", foreign(listed(titles, 4))),
        )
        for (n, by, low, high, changed, rose, fell), titles in groups.items()
    ]
    return element("ul", items, class_="plain") if items else None


def _turned(facts: Facts, devices: Sequence[Mapping[str, Any]]) -> Html | None:
    """Gates that pass now and did not, or the other way round; or whose bound is another."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for device in devices:
        for gate in device["gates"]:
            sides = tuple((side["passed"], side["bound"]) if side else None for side in (gate["before"], gate["after"]))
            mark = (gate["metric"], gate["task"], *sides)
            groups.setdefault(mark, []).append(_title(facts, device["device"]))
    items = [
        element(
            "li",
            element("b", foreign(named(metric, task))),
            f": {_turn(metric, before, after)}. ",
            element("small", foreign(listed(titles, 4))),
        )
        for (metric, task, before, after), titles in groups.items()
    ]
    return element("div", element("h3", "Gates"), element("ul", items, class_="plain")) if items else None


def _turn(metric: str, before: tuple[bool, float] | None, after: tuple[bool, float] | None) -> str:
    if before is None or after is None:
        return "new" if before is None else "gone"
    words = [] if before[0] == after[0] else ["passes now" if after[0] else "fails now"]
    if before[1] != after[1]:
        words.append(f"bound {amount(metric, after[1], True)}, was {amount(metric, before[1], True)}")
    return ", ".join(words)


def _nodes(facts: Facts, nodes: Sequence[Mapping[str, Any]]) -> Html | None:
    """The nodes with other results, and what went into them otherwise."""
    if not nodes:
        return element("p", "Every node has the result that it had.")
    groups: dict[tuple[Any, ...], list[str]] = {}
    for node in nodes:
        kind = "new" if node["before"] is None else "gone" if node["after"] is None else ""
        titles = [_title(facts, device) for device in node["devices"]]
        groups.setdefault((node["stage"], kind, tuple(node["why"])), []).extend(titles)
    rows = [
        element(
            "tr",
            element("th", foreign(stage), scope="row", class_="name"),
            element("td", foreign(listed(titles, 4) if titles else "once")),
            element("td", kind, [element("div", foreign(each)) for each in _some(why)]),
        )
        for (stage, kind, why), titles in list(groups.items())[:MOST]
    ]
    head = element("tr", [element("th", name, scope="col") for name in ("Stage", "Devices", "What went in otherwise")])
    table = element("table", element("thead", head), element("tbody", rows), class_="small")
    return element(
        "div", element("h3", "Nodes with other results"), scrolling(table, "Nodes with other results", "tall")
    )


def _some(why: Sequence[str]) -> list[str]:
    return [*why] if len(why) <= 6 else [*why[:6], f"and {len(why) - 6} more"]


def _title(facts: Facts, device: str | None) -> str:
    return facts.title(device) if device else "no device"


def _signed(share: float) -> str:
    """A difference of shares, in points."""
    return f"{100 * share:+.2f}".replace("-", "\u2212")
