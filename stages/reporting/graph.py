"""The plan as a graph, from left to right: what ran, what was cached, how long it took. Many nodes of a stage are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.report import ReportedNode
from stages.reporting.facts import Facts, listed
from stages.reporting.markup import Html, element, foreign
from stages.reporting.matrix import scrolling
from stages.reporting.words import count, mebibytes, seconds

WIDTH, HEIGHT, ACROSS, DOWN = 158, 46, 46, 14  # px, of a box and between boxes
MOST = 4  # nodes of a stage that are drawn one by one
STATUSES = ("built", "cached", "failed", "skipped")


@dataclass(frozen=True)
class Box:
    """One node, or all of a stage."""

    name: str
    nodes: tuple[ReportedNode, ...]
    needs: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(node.seconds for node in self.nodes)

    @property
    def status(self) -> str:
        """The gravest of its nodes' ways to end."""
        return max((node.status for node in self.nodes), key=("cached", "built", "skipped", "failed").index)

    @property
    def words(self) -> str:
        counts = [(sum(node.status == status for node in self.nodes), status) for status in STATUSES]
        if len(self.nodes) == 1:
            return self.nodes[0].status
        return ", ".join(f"{amount} {status}" for amount, status in counts if amount)


def graph(facts: Facts) -> Html:
    """The drawing, and the same as a table."""
    boxes = boxes_of(facts.build.nodes)
    if not boxes:
        return element("p", "The build has no nodes.")
    drawn = scrolling(_draw(boxes), "The plan as a graph; the table below tells the same", "graph")
    counts = ", ".join(
        f"{amount} {status}" for status in STATUSES if (amount := sum(n.status == status for n in facts.build.nodes))
    )
    spared = sum(max(0, len(node.devices) - 1) for node in facts.build.nodes if node.devices)
    words = f"{count(len(facts.build.nodes), 'node')}: {counts}."
    words += f" Devices that share nodes spared {spared}." if spared else ""
    return element("div", element("p", words, class_="lead"), drawn, _table(facts))


def boxes_of(nodes: Sequence[ReportedNode]) -> list[Box]:
    """The nodes as boxes: one for each, or one for a stage that has many."""
    stages: dict[str, list[ReportedNode]] = {}
    for node in nodes:
        stages.setdefault(node.stage, []).append(node)
    box = {node.name: node.stage if len(stages[node.stage]) > MOST else node.name for node in nodes}
    found = []
    for name in dict.fromkeys(box.values()):
        held = tuple(node for node in nodes if box[node.name] == name)
        needs = dict.fromkeys(box[need] for node in held for need in node.needs if need in box)
        found.append(Box(name, held, tuple(need for need in needs if need != name)))
    return found


def layered(boxes: Sequence[Box]) -> list[list[Box]]:
    """The boxes by the longest way to them, each layer ordered by where its needs lie."""
    known = {box.name: box for box in boxes}
    depth: dict[str, int] = {}

    def deep(name: str, seen: frozenset[str] = frozenset()) -> int:
        if name not in depth:
            needs = [need for need in known[name].needs if need in known and need not in seen]
            depth[name] = 1 + max((deep(need, seen | {name}) for need in needs), default=-1)
        return depth[name]

    layers: list[list[Box]] = [[] for _ in range(1 + max(deep(name) for name in known))]
    for box in boxes:
        layers[depth[box.name]].append(box)
    place: dict[str, float] = {}
    for layer in layers:

        def middle(box: Box) -> float:
            at = [place[need] for need in box.needs if need in place]
            return sum(at) / len(at) if at else 0.0

        layer.sort(key=middle)
        for index, box in enumerate(layer):
            place[box.name] = index - (len(layer) - 1) / 2
    return layers


def _draw(boxes: Sequence[Box]) -> Html:
    layers = layered(boxes)
    tallest = max(map(len, layers))
    height = tallest * (HEIGHT + DOWN) + DOWN
    width = len(layers) * (WIDTH + ACROSS) - ACROSS + 4
    corner: dict[str, tuple[float, float]] = {}
    for column, layer in enumerate(layers):
        top = (height - len(layer) * (HEIGHT + DOWN) + DOWN) / 2
        for row, box in enumerate(layer):
            corner[box.name] = (2 + column * (WIDTH + ACROSS), top + row * (HEIGHT + DOWN))
    longest = max((box.seconds for box in boxes), default=0.0) or 1.0
    parts = [_edge(corner[need], corner[box.name]) for box in boxes for need in box.needs if need in corner]
    parts += [_box(box, corner[box.name], longest) for box in boxes]
    return element(
        "svg", parts, width=width, height=round(height), viewBox=f"0 0 {width} {round(height)}", class_="plan"
    )


def _edge(start: tuple[float, float], end: tuple[float, float]) -> Html:
    x1, y1, x2, y2 = start[0] + WIDTH, start[1] + HEIGHT / 2, end[0], end[1] + HEIGHT / 2
    bend = max(ACROSS / 2, (x2 - x1) / 3)
    path = f"M{x1:g},{y1:g} C{x1 + bend:g},{y1:g} {x2 - bend:g},{y2:g} {x2:g},{y2:g}"
    return element("path", d=path, class_="edge")


def _box(box: Box, at: tuple[float, float], longest: float) -> Html:
    x, y = at
    many = len(box.nodes) > 1
    title = f"{box.name} × {len(box.nodes)}" if many else box.name
    words = f"{box.words} · {seconds(box.seconds)}" if box.seconds else box.words
    behind = [element("rect", x=x + 4, y=y - 4, width=WIDTH - 4, height=HEIGHT, rx=3, class_="behind")] if many else []
    long = (WIDTH - 16) * box.seconds / longest
    return element(
        "a",
        element("title", f"{title}: {words}"),
        behind,
        element("rect", x=x, y=y, width=WIDTH, height=HEIGHT, rx=3, class_=f"box {box.status}"),
        element("text", _cut(title, 22), x=x + 8, y=y + 17, class_="box-name"),
        element("text", _cut(words, 25), x=x + 8, y=y + 32, class_="box-words"),
        element(
            "rect", x=x + 8, y=y + HEIGHT - 8, width=round(max(long, 0.5), 1), height=3, class_=f"time {box.status}"
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
        element("th", "Digest", scope="col"),
        element("th", "Why", scope="col"),
    )
    rows = [
        element(
            "tr",
            element("th", foreign(node.name), scope="row", class_="name"),
            element("td", element("span", node.status, class_=f"status {node.status}")),
            element("td", seconds(node.seconds) if node.status != "cached" else "–", class_="number"),
            element("td", node.memory_mib or "–", class_="number"),
            element("td", mebibytes(node.size) if node.size else "–", class_="number"),
            element("td", foreign(_whose(facts, node))),
            element("td", element("code", (node.digest or "–")[:12])),
            element("td", foreign(node.error or node.why)),
            id=f"node-{node.name}",
        )
        for node in facts.build.nodes
    ]
    table = element("table", element("thead", head), element("tbody", rows), class_="small nodes")
    return element(
        "details",
        element("summary", f"All {count(len(rows), 'node')}"),
        scrolling(table, "Nodes, a row each", "tall"),
        open=True,
    )


def _whose(facts: Facts, node: ReportedNode) -> str:
    if len(node.devices) in (0, len(facts.devices)):
        return "all"
    return listed([facts.title(name) for name in node.devices], 3)


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"
