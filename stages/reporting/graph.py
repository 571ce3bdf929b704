"""The plan as a graph, from left to right: what ran, what was cached, how long it took; and the same as a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pipelines.report import ReportedNode
from pipelines.sharing import Sharing
from stages.reporting.facts import Facts, listed
from stages.reporting.layout import Box, Layout, boxes_of, lay_out
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import folded_text, scrolling
from stages.reporting.words import count, mebibytes, seconds

WIDTH, HEIGHT, ACROSS, DOWN = 116, 58, 26, 14  # px, of a box and between boxes
LETTERS = 17  # that fit into a box
STATUSES = ("built", "cached", "failed", "skipped")


def graph(facts: Facts) -> Html:
    """The drawing, and the table."""
    nodes = facts.build.nodes
    if not nodes:
        return element("p", "The build has no nodes.")
    counts = [(sum(node.status == status for node in nodes), status) for status in STATUSES]
    words = f"{count(len(nodes), 'node')}: " + ", ".join(f"{amount} {status}" for amount, status in counts if amount)
    words += "".join(f". {each}" for each in _shared(facts)) + "."
    words += " Solid: built in this build, the bar its time; dashed: cached; dotted: skipped."
    return element(
        "div",
        element("p", words, class_="lead"),
        scrolling(_drawing(facts, boxes_of(nodes)), "The plan as a graph; the table below tells the same", "graph"),
        _table(facts),
    )


def _shared(facts: Facts) -> list[str]:
    """What the devices spare each other, in words."""
    told = facts.summary["shared"]
    return Sharing(**told).words if told else []


def _drawing(facts: Facts, boxes: Sequence[Box]) -> Html:
    """Needs that follow from others are left out, and the way of a long one is kept free."""
    laid = lay_out(boxes)
    height = laid.rows * (HEIGHT + DOWN) + DOWN
    width = laid.columns * (WIDTH + ACROSS) - ACROSS + 8
    longest = max((box.seconds for box in boxes), default=0.0) or 1.0
    parts = [_edge(laid, way) for way in laid.ways]
    parts += [_box(facts, box, *_corner(laid, box.name), longest) for box in boxes]
    return element(
        "svg", parts, width=width, height=round(height), viewBox=f"0 0 {width} {round(height)}", class_="plan"
    )


def _corner(laid: Layout, name: str) -> tuple[float, float]:
    column, row = laid.places[name]
    return 2 + column * (WIDTH + ACROSS), DOWN / 2 + row * (HEIGHT + DOWN) + 4


def _edge(laid: Layout, way: Sequence[str]) -> Html:
    """A curve through all places of a way."""
    path = ""
    for start, end in pairwise(way):
        (left, top), (right, below) = _corner(laid, start), _corner(laid, end)
        x1, y1, x2, y2 = left + WIDTH, top + HEIGHT / 2, right, below + HEIGHT / 2
        path += (
            f"{'L' if path else 'M'}{x1:g},{y1:g} C{x1 + ACROSS / 2:g},{y1:g} {x2 - ACROSS / 2:g},{y2:g} {x2:g},{y2:g} "
        )
    return element("path", d=path.strip(), class_="edge")


def _box(facts: Facts, box: Box, x: float, y: float, longest: float) -> Html:
    many = len(box.nodes) > 1
    whose = f"{len(box.nodes)} nodes" if many else _whose(facts, box.nodes[0], 1)
    words = ", ".join(f"{amount} {status}" for amount, status in box.counts) if many else box.status
    spent = seconds(box.seconds) if box.seconds else ""
    behind = [element("rect", x=x + 4, y=y - 4, width=WIDTH, height=HEIGHT, rx=2, class_="behind")] if many else []
    long = (WIDTH - 14) * box.seconds / longest
    return element(
        "a",
        element("title", f"{box.title}, {whose}: {words} {spent}".strip()),
        behind,
        element("rect", x=x, y=y, width=WIDTH, height=HEIGHT, rx=2, class_=f"box {box.status}"),
        element("text", _cut(box.title), x=x + 7, y=y + 16, class_="box-name"),
        element("text", _cut(whose), x=x + 7, y=y + 30, class_="box-words"),
        element(
            "text", _cut(f"{words if many else box.status} {spent}".strip()), x=x + 7, y=y + 44, class_="box-words"
        ),
        element(
            "rect", x=x + 7, y=y + HEIGHT - 8, width=round(max(long, 0.5), 1), height=3, class_=f"time {box.status}"
        ),
        href=f"#node-{box.nodes[0].name}",
    )


def _table(facts: Facts) -> Html:
    head = element(
        "tr",
        element("th", "Node", scope="col"),
        element("th", "Ended", scope="col"),
        element("th", "Time", scope="col", class_="number"),
        element("th", "Memory", element("small", "MiB, peak"), scope="col", class_="number"),
        element("th", "Size", element("small", "MiB"), scope="col", class_="number"),
        element("th", "Devices", scope="col"),
        element("th", "Needs", scope="col"),
        element("th", "Digest", scope="col"),
        element("th", "Why", scope="col"),
    )
    rows = [
        element(
            "tr",
            element("th", foreign(node.name), scope="row", class_="name"),
            element("td", element("span", node.status, class_=f"status {node.status}")),
            element("td", seconds(node.seconds) if node.status in ("built", "failed") else "–", class_="number"),
            element("td", node.memory_mib or "–", class_="number"),
            element("td", mebibytes(node.size) if node.size else "–", class_="number"),
            element("td", foreign(_whose(facts, node, 3))),
            element("td", foreign(", ".join(node.needs)), class_="name"),
            element("td", element("code", (node.digest or "–")[:12])),
            element("td", folded_text(node.error or node.why)),
            id=f"node-{node.name}",
        )
        for node in facts.build.nodes
    ]
    table = element("table", element("thead", head), element("tbody", rows), class_="small nodes")
    summary = element("summary", f"All {count(len(rows), 'node')}")
    return element("details", summary, scrolling(table, "Nodes, a row each", "tall"), open=True)


def _whose(facts: Facts, node: ReportedNode, most: int) -> str:
    if not node.devices:
        return "once"
    if len(node.devices) == len(facts.devices):
        return "all devices"
    titles = [facts.title(name) for name in node.devices]
    if most == 1:
        return titles[0] + (f" +{len(titles) - 1}" if len(titles) > 1 else "")
    return listed(titles, most)


def _cut(words: str) -> str:
    return words if len(words) <= LETTERS else words[: LETTERS - 1] + "…"
