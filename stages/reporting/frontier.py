"""Accuracy against size: what ships, what the allocation of bits and the search for architectures could have chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.reporting.charts import Level, Point, Scatter, Series, axis_between, axis_from_zero, scatter
from stages.reporting.facts import Device, Facts, listed, part, read_json, tasks
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import scrolling
from stages.reporting.words import is_number, mebibytes, number, percent

MEBI = 2**20


def frontier(facts: Facts) -> Html:
    """The charts that there is something for."""
    charts = [_shipped(facts), *_allocated(facts), *_searched(facts)]
    return element("div", [each for each in charts if each is not None], class_="charts")


def score(metrics: Mapping[str, Any], key: str) -> float | None:
    """A score over all questions: the overall one, else the mean of the tasks'."""
    overall = part(metrics, "overall").get(key)
    if is_number(overall):
        return float(overall)
    values = [float(task[key]) for task in tasks(metrics).values() if is_number(task.get(key))]
    return sum(values) / len(values) if values else None


def _shipped(facts: Facts) -> Html | None:
    places: dict[tuple[float, float], list[Device]] = {}
    for device in facts.devices:
        y = score(device.metrics, "artifact")
        if y is not None and device.size is not None:
            places.setdefault((device.size, y), []).append(device)
    if not places:
        return None
    before = next((y for d in facts.devices if (y := score(d.metrics, "fp32")) is not None), None)
    sizes = [node.folder / "model.safetensors" for node in facts.holders("model.safetensors") if node.folder]
    weighed = sizes[0].stat().st_size if sizes else None
    xs = [size / MEBI for size, _ in places] + ([weighed / MEBI] if weighed else [])
    ys = [y for _, y in places] + ([before] if before is not None else [])
    points, rows = [], []
    for place, ((size, y), devices) in enumerate(sorted(places.items())):
        mark = _letter(place)
        names = listed([device.title for device in devices], 8)
        points.append(
            Point(size / MEBI, y, mark, f"{mark}: {mebibytes(size)} MiB, {percent(y)}: {names}", below=place % 2 == 1)
        )
        rows.append((mark, mebibytes(size), percent(y), names))
    if weighed and before is not None:
        points.append(
            Point(
                weighed / MEBI, before, "original", f"as it came: {mebibytes(weighed)} MiB, {percent(before)}", "other"
            )
        )
        rows.append(("original", mebibytes(weighed), percent(before), "the checkpoint as it came"))
    chart = Scatter(
        "Answers right against the size of the model files",
        "size of the model files, MiB (measured)",
        axis_from_zero(xs),
        axis_between(ys, 4, (0.0, 1.0), 0.02),
        [Series([each]) if each.kind == "measured" else Series([each], kind="other") for each in points],
        [Level(before, "original")] if before is not None and not weighed else [],
    )
    return _figure(
        "What ships",
        "Score over all questions, %; measured on this machine.",
        chart,
        ("", "MiB", "score", "devices"),
        rows,
    )


def _allocated(facts: Facts) -> list[Html | None]:
    """A chart for each allocation of bits."""
    found = []
    for node in facts.holders("frontier.json"):
        told = read_json(node, "frontier.json")
        if not isinstance(told, Mapping):
            continue
        points, others = _rows(told.get("points")), _rows(told.get("uniform"))
        chosen = _rows([told.get("chosen")])
        every = [*points, *others, *chosen]
        if not chosen or not every:
            continue
        series = [
            Series([_allocation(each) for each in points], True, "front"),
            Series([_allocation(each) for each in others], False, "other"),
            Series([_allocation(each, "chosen") for each in chosen], False, "chosen"),
        ]
        chart = Scatter(
            f"Allocations of {node.name}",
            "weights, MiB",
            axis_from_zero([each["bytes"] / MEBI for each in every]),
            axis_between([each["accuracy"] for each in every], 4, (0.0, 1.0), 0.02),
            series,
        )
        rows = [
            (kind, mebibytes(each["bytes"]), percent(each["accuracy"]), number(each.get("kl")))
            for kind, group in (("chosen", chosen), ("frontier", points), ("uniform", others))
            for each in group
        ]
        whose = listed([facts.title(name) for name in node.devices], 4)
        words = f"For {whose}: exact answers on the calibration questions, %. "
        words += "Line: the best allocations; hollow: every weight in one format; ring: chosen."
        found.append(_figure("Bits a layer: the frontier", words, chart, ("", "MiB", "exact", "KL, nats"), rows))
    return list(found)


def _searched(facts: Facts) -> list[Html | None]:
    """A chart for each search of architectures."""
    found: list[Html | None] = []
    for node in facts.holders("search.json"):
        told = read_json(node, "search.json")
        front = told.get("frontier") if isinstance(told, Mapping) else None
        points = []
        for trial in front if isinstance(front, list) else ():
            cost, result = part(trial, "cost"), part(trial, "score")
            sizes = [size for size in part(cost, "bytes").values() if is_number(size)]
            if sizes and is_number(result.get("accuracy")):
                points.append(Point(max(sizes) / MEBI, float(result["accuracy"])))
        if len(points) < 2:
            continue
        points.sort(key=lambda each: each.x)
        chart = Scatter(
            "The frontier of the search",
            "size, MiB",
            axis_from_zero([each.x for each in points]),
            axis_between([each.y for each in points], 4, (0.0, 1.0), 0.02),
            [Series(points, True, "front")],
        )
        rows = [("", number(each.x), percent(each.y), "") for each in points]
        words = "Architectures that no other beats: answers right on the supernet, before recovery, %."
        found.append(_figure("Architectures: the frontier", words, chart, ("", "MiB", "right", ""), rows))
    return found


def _figure(title: str, words: str, chart: Scatter, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    cells = [
        element(
            "tr",
            [
                element("td", foreign(cell), class_="number" if place in (1, 2) else None)
                for place, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    table = element(
        "table",
        element(
            "thead",
            element(
                "tr",
                [
                    element("th", name, scope="col", class_="number" if place in (1, 2) else None)
                    for place, name in enumerate(head)
                ],
            ),
        ),
        element("tbody", cells),
        class_="small",
    )
    return element(
        "figure",
        element("figcaption", element("h3", title), element("p", foreign(words))),
        scatter(chart),
        scrolling(table, f"{title}: the figures", "low"),
    )


def _rows(told: Any) -> list[Mapping[str, Any]]:
    """The points that were measured; of others there is an estimate only."""
    rows = told if isinstance(told, list) else []
    return [
        each
        for each in rows
        if isinstance(each, Mapping) and is_number(each.get("bytes")) and is_number(each.get("accuracy"))
    ]


def _allocation(told: Mapping[str, Any], mark: str = "") -> Point:
    words = f"{told.get('label', '')} {mebibytes(told['bytes'])} MiB, {percent(told['accuracy'])}".strip()
    # the mark of the chosen one is below the line, which bends away from there
    return Point(told["bytes"] / MEBI, float(told["accuracy"]), mark, words, below=True)


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"{chr(ord('A') + place // 26 - 1)}{chr(ord('A') + place % 26)}"
