"""Where the boxes of a graph lie: in columns by the longest way to them, in rows near what they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipelines.report import ReportedNode

MOST = 4  # nodes of a stage that are drawn one by one
ROUNDS = 4  # of ordering the rows


@dataclass(frozen=True)
class Box:
    """One node, or all of a stage."""

    name: str
    nodes: tuple[ReportedNode, ...]
    needs: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.nodes[0].stage

    @property
    def seconds(self) -> float:
        return sum(node.seconds for node in self.nodes)

    @property
    def status(self) -> str:
        """The gravest of its nodes' ways to end."""
        return max((node.status for node in self.nodes), key=("cached", "built", "skipped", "failed").index)

    @property
    def counts(self) -> list[tuple[int, str]]:
        """How many of its nodes ended in each way."""
        found: dict[str, int] = {}
        for node in self.nodes:
            found[node.status] = found.get(node.status, 0) + 1
        return [(amount, status) for status, amount in found.items()]


@dataclass(frozen=True)
class Layout:
    """places: {name: (column, row)} of the boxes and of the points that long ways go through. ways: from a need to
    what needs it, through all columns between them."""

    places: Mapping[str, tuple[int, float]]
    ways: Sequence[Sequence[str]]
    columns: int
    rows: float


def boxes_of(nodes: Sequence[ReportedNode]) -> list[Box]:
    """The nodes as boxes: one for each, or one for a stage that has many."""
    stages: dict[str, int] = {}
    for node in nodes:
        stages[node.stage] = stages.get(node.stage, 0) + 1
    box = {node.name: node.stage if stages[node.stage] > MOST else node.name for node in nodes}
    found = []
    for name in dict.fromkeys(box.values()):
        held = tuple(node for node in nodes if box[node.name] == name)
        needs = dict.fromkeys(box[need] for node in held for need in node.needs if need in box)
        found.append(Box(name, held, tuple(need for need in needs if need != name)))
    return found


def lay_out(boxes: Sequence[Box]) -> Layout:
    """Place boxes that need each other in no circle, which a plan never does."""
    needs = _reduced({box.name: box.needs for box in boxes})
    column = _columns(needs)
    layers: list[list[str]] = [[] for _ in range(1 + max(column.values()))]
    for name, place in column.items():
        layers[place].append(name)
    ways, nearest = [], {name: list(each) for name, each in needs.items()}
    for name, each in needs.items():
        for need in each:
            between = [f"{need}>{name}>{place}" for place in range(column[need] + 1, column[name])]
            way = [need, *between, name]
            ways.append(way)
            for place, point in enumerate(between, column[need] + 1):
                layers[place].append(point)
            for before, after in pairwise(way):
                nearest.setdefault(after, []).append(before)
    return _rows(layers, ways, nearest)


def _reduced(needs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The needs without those that other needs have already."""
    every: dict[str, set[str]] = {}

    def above(name: str) -> set[str]:
        if name not in every:
            every[name] = set(needs[name]).union(*(above(need) for need in needs[name]))
        return every[name]

    return {
        name: [need for need in each if not any(need in above(other) for other in each if other != need)]
        for name, each in needs.items()
    }


def _columns(needs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    found: dict[str, int] = {}

    def column(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((column(need) for need in needs[name]), default=-1)
        return found[name]

    for name in needs:
        column(name)
    return found


def _rows(layers: Sequence[list[str]], ways: Sequence[Sequence[str]], nearest: Mapping[str, Sequence[str]]) -> Layout:
    """Order each layer by the middle of its neighbours, from left to right and back; each is centred."""
    after: dict[str, list[str]] = {}
    for way in ways:
        for one, other in pairwise(way):
            after.setdefault(one, []).append(other)
    at: dict[str, float] = {}

    def place(layer: Sequence[str]) -> None:
        for index, name in enumerate(layer):
            at[name] = index - (len(layer) - 1) / 2

    for layer in layers:
        place(layer)
    for turn in range(ROUNDS):
        forth = turn % 2 == 0
        for layer in layers if forth else reversed(layers):
            side = nearest if forth else after
            layer.sort(key=lambda name, side=side: _middle([at[each] for each in side.get(name, ())], at[name]))  # type: ignore[misc]
            place(layer)
    rows = max(map(len, layers))
    places = {name: (column, at[name] + (rows - 1) / 2) for column, layer in enumerate(layers) for name in layer}
    return Layout(places, ways, len(layers), rows)


def _middle(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
