"""One-shot structured pruning: a path from the full model down, each step where it costs the least loss a byte.

Channels, heads and layers are already in order of importance; what remains is how much each dimension gives up. Each
value of each dimension is measured alone, and losses are taken to add up.
"""

from collections.abc import Iterator
from functools import partial

from pipelines.workspace import Workspace
from stages.elastic.space import Architecture, Space
from stages.searching.costs import Costs
from stages.searching.exploring import SCORE
from stages.searching.studies import mark
from stages.searching.trials import Score, Trial

BY = "prune"


def pruned(space: Space, costs: Costs, work: Workspace) -> list[Trial]:
    """The architectures of the path, from the largest to the smallest, each scored."""
    alone = [{**space.largest, each.name: value} for each in space.dimensions for value in each.values[1:]]
    losses = {mark(each): score.loss for each, score in _scored([space.largest, *alone], work)}
    path = list(_path(space, costs, losses))
    return [
        Trial(BY, 0, number, architecture, score, costs.of(architecture))
        for number, (architecture, score) in enumerate(_scored(path, work))
    ]


def _scored(architectures: list[Architecture], work: Workspace) -> list[tuple[Architecture, Score]]:
    items = [{"architecture": dict(each), "bar": None} for each in architectures]
    found: dict[int, Score] = {}
    for index, result in work.map(SCORE, items):
        found[index] = Score(**result["whole"])
        work.progress(len(found), len(items), "architectures")
    return [(each, found[index]) for index, each in enumerate(architectures)]


def _path(space: Space, costs: Costs, losses: dict[str, float]) -> Iterator[Architecture]:
    def rate(here: Architecture, step: Architecture) -> float:
        """Nats lost for each share of bytes and latency saved; what a dimension costs at its largest is nothing."""
        name = next(name for name in step if step[name] != here[name])
        lost = losses[mark({**space.largest, name: step[name]})] - losses[mark({**space.largest, name: here[name]})]
        price, cost = costs.of(here), costs.of(step)
        saved = price.byte_share - cost.byte_share + price.latency_share - cost.latency_share
        return lost / max(saved, 1e-9)

    now: Architecture = space.largest
    while True:
        yield now
        steps = list(space.neighbours(now))
        if not steps:
            return
        now = min(steps, key=partial(rate, now))
