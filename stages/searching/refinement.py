"""What lies beside a device's best trials, within its bounds: a search that ends at a budget seldom ends on it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipelines.workspace import Workspace
from stages.elastic.space import Architecture, Space
from stages.schema.search import ShortlistConfig
from stages.search_artifacts import Supernet
from stages.searching.judge import score_subnet
from stages.searching.studies import mark
from stages.searching.trials import Cost, Score, Trial

LISTED = "stages.searching.refinement.score_listed"
BY = "refinement"
BEAM = 4  # of the best, whose neighbours are tried


def score_listed(supernet: Supernet, item: dict[str, Any], config: ShortlistConfig, work: Workspace) -> dict[str, Any]:
    """The scores that the search would have measured."""
    return score_subnet(supernet, item, config.search, work)


def refined(
    known: Mapping[str, Trial],
    space: Space,
    price: Callable[[Architecture], Cost],
    fits: Callable[[Cost], bool],
    config: ShortlistConfig,
    work: Workspace,
) -> dict[str, Trial]:
    """`known`, trials that fit by mark, with those that config.refine rounds added: the architectures one step beside
    the BEAM most accurate that fit too. A round that betters none of these is the last."""
    found = dict(known)
    given_up: set[str] = set()
    for number in range(config.refine):
        beam = _best(found)
        waiting = {
            mark(each): each
            for trial in beam
            for each in beside(space, trial.architecture)
            if mark(each) not in found and mark(each) not in given_up and fits(price(each))
        }
        if not waiting:
            break
        least = beam[-1].score.accuracy - config.search.prune if config.search.prune is not None else None
        items = [{"architecture": dict(each), "bar": least} for each in waiting.values()]
        scored: dict[int, Score | None] = {}
        for index, result in work.map(LISTED, items):
            scored[index] = Score(**result["whole"]) if result["whole"] else None
        for index, (key, architecture) in enumerate(waiting.items()):
            score = scored[index]
            if score is None:
                given_up.add(key)
            else:
                found[key] = Trial(BY, 0, len(found), architecture, score, price(architecture))
        best = 100 * _best(found)[0].score.accuracy
        work.log(f"round {number + 1}: {len(items)} tried beside the best; the best has {best:.1f} % right")
        if _best(found) == beam:
            break
    return found


def beside(space: Space, architecture: Architecture) -> Iterator[dict[str, int]]:
    """One step up or down in one dimension."""
    for each in space.dimensions:
        place = each.values.index(architecture[each.name])
        for other in (place - 1, place + 1):
            if 0 <= other < len(each.values):
                yield {**architecture, each.name: each.values[other]}


def _best(found: Mapping[str, Trial]) -> list[Trial]:
    return sorted(found.values(), key=order)[:BEAM]


def order(trial: Trial) -> tuple[float, float, float, str]:
    """By which candidates are listed: the most accurate first, then the least loss, the fewest bytes."""
    return (-trial.score.accuracy, trial.score.loss, trial.cost.byte_share, mark(trial.architecture))
