"""Charts as SVG written by hand. Places along x are percentages, so that a chart is as wide as its cell and its text
stays as large as the page's. What is measured is solid; what is predicted is hatched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.reporting.markup import Html, element
from stages.reporting.words import rounded

ROW = 18  # px, the height of a bar's cell


@dataclass(frozen=True)
class Axis:
    """From least to most, in equal or in proportional steps."""

    least: float
    most: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in percent of the width; beyond the ends it is at the end."""
        value = min(max(value, self.least), self.most)
        if self.logarithmic:
            return 100 * math.log(value / self.least) / math.log(self.most / self.least)
        return 100 * (value - self.least) / (self.most - self.least)


def axis_from_zero(values: Iterable[float], ticks: int = 3) -> Axis:
    """An axis for bars: from zero to a round number not below the greatest value."""
    most = max(values, default=0.0)
    if most <= 0:
        return Axis(0.0, 1.0, (0.0, 1.0))
    step = _round_step(most / ticks)
    last = math.ceil(most / step - 1e-9)
    return Axis(0.0, last * step, tuple(step * place for place in range(last + 1)))


def axis_for(values: Sequence[float]) -> Axis:
    """An axis from zero; where the greatest would leave the others no room, a logarithmic one."""
    ordered = sorted(value for value in values if value > 0)
    if not ordered or ordered[-1] < 8 * ordered[len(ordered) // 2]:
        return axis_from_zero(values)
    least, most = ordered[0] * 0.85, ordered[-1] * 1.15
    decades = math.log10(most / least)
    factors = (1,) if decades > 2.5 else (1, 3) if decades > 1.2 else (1, 2, 5)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return Axis(least, most, tuple(tick for tick in ticks if least <= tick <= most), True)


def axis_between(
    values: Sequence[float], ticks: int = 4, within: tuple[float, float] | None = None, span: float = 0.0
) -> Axis:
    """An axis for points: around all values, with some room, at least `span` long, and inside `within`."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.12 or abs(high) * 0.1 or 1.0, (span - (high - low)) / 2)
    least, most = low - room, high + room
    if within is not None:
        least, most = max(within[0], least), min(within[1], most)
    if low >= 0:
        least = max(0.0, least)
    step = _round_step((most - least) / ticks)
    first = math.ceil(least / step - 1e-9)
    found = [step * place for place in range(first, math.floor(most / step + 1e-9) + 1)]
    return Axis(least, most, tuple(found))


def bar(
    axis: Axis,
    value: float,
    low: float | None = None,
    high: float | None = None,
    bound: float | None = None,
    predicted: bool = False,
    bad: bool = False,
    title: str = "",
) -> Html:
    """A bar from zero, the whisker of its interval, and a mark where the bound is.

    On a logarithmic axis, which has no zero, the bar is the interval and a line across it the value.
    """
    middle, kind = ROW / 2, f"bar {'predicted' if predicted else 'measured'}{' bad' if bad else ''}"
    parts = [element("title", title) if title else None]
    parts += [_line(axis.at(tick), 0, axis.at(tick), ROW, "grid") for tick in axis.ticks]
    known = low is not None and high is not None
    ends = (axis.at(low), axis.at(high)) if low is not None and high is not None else (0.0, axis.at(value))
    if axis.logarithmic:
        start, stop = ends if known else (max(0.0, axis.at(value) - 0.5), axis.at(value) + 0.5)
        parts.append(_rect(start, stop, kind))
        parts.append(_line(axis.at(value), 1, axis.at(value), ROW - 1, "whisker"))
    else:
        parts.append(_rect(0.0, axis.at(value), kind))
        if known:
            parts.append(_line(ends[0], middle, ends[1], middle, "whisker"))
            parts += [_line(end, middle - 4, end, middle + 4, "whisker") for end in ends]
    if bound is not None and axis.least <= bound <= axis.most:
        parts.append(_line(axis.at(bound), 0, axis.at(bound), ROW, "bound"))
    return element("svg", parts, class_="chart", height=ROW, role="img", aria_label=title or None)


def interval(axis: Axis, value: float, low: float | None, high: float | None, bound: float | None, title: str) -> Html:
    """A point with its interval, where zero says nothing: retention beside its gate."""
    middle = ROW / 2
    bad = bound is not None and (low if low is not None else value) < bound
    parts = [element("title", title)]
    parts += [_line(axis.at(tick), 0, axis.at(tick), ROW, "grid") for tick in axis.ticks]
    if bound is not None:
        parts.append(_line(axis.at(bound), 0, axis.at(bound), ROW, "bound"))
    if low is not None and high is not None:
        parts.append(_line(axis.at(low), middle, axis.at(high), middle, f"interval{' bad' if bad else ''}"))
    parts.append(element("circle", cx=_share(axis.at(value)), cy=middle, r=4, class_=f"dot{' bad' if bad else ''}"))
    return element("svg", parts, class_="chart", height=ROW, role="img", aria_label=title)


def names(axis: Axis, factor: float = 1.0) -> list[str]:
    """The ticks in digits that tell them apart."""
    ticks = [tick * factor for tick in axis.ticks]
    if axis.logarithmic or len(ticks) < 2:
        return [rounded(tick) for tick in ticks]
    step = ticks[1] - ticks[0]
    places = next(places for places in range(12) if abs(step * 10**places - round(step * 10**places)) < 1e-6)
    return [f"{tick:,.{places}f}".replace(",", "\u202f") for tick in ticks]


def scale(axis: Axis, factor: float = 1.0) -> Html:
    """The numbers of an axis, for the head of a column of bars: hidden from screen readers, which hear the values."""
    parts = []
    for tick, name in zip(axis.ticks, names(axis, factor), strict=True):
        place = axis.at(tick)
        anchor = "start" if place < 8 else "end" if place > 92 else "middle"
        parts.append(element("text", name, x=_share(place), y=10, text_anchor=anchor))
    return element("svg", parts, class_="chart scale", height=13, aria_hidden="true")


@dataclass(frozen=True)
class Point:
    """mark: what stands beside it, or "". below: whether the mark is below the point, not above."""

    x: float
    y: float
    mark: str = ""
    title: str = ""
    kind: str = "measured"
    below: bool = False


@dataclass(frozen=True)
class Series:
    """Points; line: whether a line joins them."""

    points: Sequence[Point]
    line: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Level:
    """A line across the chart at y, with a name."""

    y: float
    name: str


@dataclass(frozen=True)
class Scatter:
    """y against x. Of x the unit is in `x_title`."""

    label: str
    x_title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    levels: Sequence[Level] = field(default_factory=tuple)
    height: int = 240


def scatter(chart: Scatter) -> Html:
    """The chart in a box: the ticks of y, which are shares, in percent at its left, those of x below."""
    bottom = chart.height - 2

    def y(value: float) -> float:
        return round(2 + (bottom - 2) * (1 - chart.y.at(value) / 100), 1)

    inner = [_line(chart.x.at(tick), 0, chart.x.at(tick), chart.height, "grid") for tick in chart.x.ticks]
    inner += [_line(0, y(tick), 100, y(tick), "grid") for tick in chart.y.ticks]
    for level in chart.levels:
        inner.append(_line(0, y(level.y), 100, y(level.y), "level"))
        inner.append(element("text", level.name, x="99.5%", y=y(level.y) - 5, text_anchor="end", class_="note"))
    for series in chart.series:
        if series.line:
            pairs = zip(series.points, series.points[1:], strict=False)
            inner += [
                _line(chart.x.at(a.x), y(a.y), chart.x.at(b.x), y(b.y), f"joined {series.kind}") for a, b in pairs
            ]
        for point in series.points:
            inner += _marked(point, chart.x.at(point.x), y(point.y), series.kind)
    ticks = [
        element("text", name, x="100%", y=min(max(y(tick) + 4, 11), bottom), text_anchor="end")
        for tick, name in zip(chart.y.ticks, names(chart.y, 100), strict=True)
    ]
    left = element("svg", ticks, class_="chart scale", height=chart.height, aria_hidden="true")
    box = element("svg", inner, class_="chart box", height=chart.height, role="img", aria_label=chart.label)
    below = element("div", scale(chart.x), element("p", chart.x_title, class_="axis-title"))
    return element("div", left, box, element("span"), below, class_="scatter")


def columns(values: Sequence[float | None], most: float, height: int, titles: Sequence[str], kind: str) -> Html:
    """A column for each value, side by side."""
    width = 100 / max(1, len(values))
    parts = []
    for place, (value, title) in enumerate(zip(values, titles, strict=True)):
        if value is not None:
            tall = max(1.0, height * min(value, most) / most) if value > 0 else 0
            shape = {"x": _share(width * place), "width": _share(width * 0.82)}
            parts.append(
                element(
                    "rect",
                    element("title", title),
                    class_=kind,
                    y=round(height - tall, 1),
                    height=round(tall, 1),
                    **shape,
                )
            )
    return element("svg", parts, class_="chart box", height=height, aria_hidden="true")


def hatches() -> Html:
    """The patterns of what is predicted, once a page."""
    patterns = [
        element(
            "pattern",
            element("rect", width=6, height=6, class_=f"{name}-ground"),
            element("path", d="M-1,7 L7,-1 M-1,1 L1,-1 M5,7 L7,5", class_=f"{name}-line"),
            id=name,
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
        )
        for name in ("hatch", "hatch-bad")
    ]
    return element("svg", element("defs", patterns), class_="patterns", width=0, height=0, aria_hidden="true")


def _marked(point: Point, x: float, y: float, kind: str) -> list[Html]:
    title = element("title", point.title) if point.title else None
    if kind == "other":
        found = [element("circle", title, cx=_share(x), cy=y, r=3.5, class_="hollow")]
    elif kind == "chosen":
        found = [element("circle", title, cx=_share(x), cy=y, r=6, class_="chosen")]
    else:
        found = [element("circle", title, cx=_share(x), cy=y, r=3 if kind == "front" else 5, class_="dot")]
    if point.mark:
        right = x < 70
        anchor: dict[str, Any] = {"text_anchor": "start" if right else "end", "dx": 9 if right else -9}
        if kind != "other":
            anchor = {"text_anchor": "middle"}
        height = y + 4 if kind == "other" else y + 20 if point.below or y < 20 else y - 10
        found.append(element("text", point.mark, x=_share(x), y=height, class_="mark", **anchor))
    return found


def _rect(start: float, stop: float, kind: str) -> Html:
    return element("rect", class_=kind, x=_share(start), y=4, width=_share(stop - start), height=ROW - 8)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return element("line", x1=_share(x1), y1=y1, x2=_share(x2), y2=y2, class_=kind)


def _share(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def _round_step(size: float) -> float:
    """The least of 1, 2, 2.5 and 5 times a power of ten that is not below size."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= size * (1 - 1e-9))
