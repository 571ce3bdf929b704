"""Whether the supernet ranks subnets as recovery does: Kendall's tau over subnets of all sizes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from random import Random
from typing import Any

from engine.figures import Figure

from search.bench import Bench
from search.tables import columns, percent, share
from stages.searching.hypervolume import kendall_tau
from stages.searching.studies import mark
from stages.searching.trials import Score, Trial
from stages.searching.words import described

TARGET = 0.6
DRAW = 43  # seed of the choice of subnets


@dataclass(frozen=True)
class Subnet:
    """before: on the supernet; after: recovered, on as many questions like the training's; overall: recovered, on the
    held-out questions; full: the same of the full model."""

    architecture: dict[str, int]
    byte_share: float
    before: Score
    after: Score
    overall: float
    full: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def subnets(bench: Bench) -> list[Subnet]:
    settings, full = bench.settings, bench.answered(bench.reference)
    largest = bench.supernet(True).space().largest
    found = []
    for trial in spread(bench.trials("nsga2").trials(), largest, settings.tau_subnets):
        made = bench.recovered(True, trial.architecture, settings.tau_steps)
        overall = bench.answered(made.checkpoint)
        architecture, cost = dict(trial.architecture), trial.cost
        found.append(Subnet(architecture, cost.byte_share, trial.score, made.score, overall, full))
    return found


def spread(trials: Sequence[Trial], largest: dict[str, int], count: int) -> list[Trial]:
    """`count` different architectures that were scored on all questions, whoever proposed them, the full model left
    out: by their bytes in as many groups of equal number, and one drawn from each."""
    different = {mark(trial.architecture): trial for trial in reversed(trials) if trial.score.whole}
    different.pop(mark(largest), None)
    ordered = sorted(different.values(), key=lambda trial: (trial.cost.byte_share, mark(trial.architecture)))
    if len(ordered) < count:
        raise SystemExit(f"{count} subnets are wanted, and only {len(ordered)} were scored on all questions")
    bounds = [place * len(ordered) // count for place in range(count + 1)]
    random = Random(DRAW)
    return [random.choice(ordered[low:high]) for low, high in pairwise(bounds)]


def table(found: Sequence[Subnet]) -> str:
    rows = [("bytes", "on the supernet", "loss", "recovered", "held out", "of the full", "architecture")]
    for each in found:
        right = [percent(value) for value in (each.before.accuracy, each.after.accuracy, each.overall)]
        kept, text = percent(each.overall / each.full if each.full else None), described(each.architecture)
        rows.append((share(each.byte_share), right[0], f"{each.before.loss:.3f}", right[1], right[2], kept, text))
    return columns(rows)


def figures(found: Sequence[Subnet]) -> list[Figure]:
    said = f"{len(found)} subnets"
    good = [each for each in found if each.overall >= each.full / 2]
    made = [
        Figure("tau: accuracy", _accuracy(found), "", f"{said}: supernet's, and recovered on held out", TARGET, False),
        Figure("tau: loss", _loss(found), "", f"{said}: supernet's (negative), and recovered on held out"),
        Figure("tau: accuracy, like questions", _alike(found), "", f"{said}: recovered, on questions of the same kind"),
    ]
    if len(good) > 2:
        made.append(Figure("tau: among the good", _accuracy(good), "", f"{len(good)} with half of the full's accuracy"))
    return made


def _accuracy(found: Sequence[Subnet]) -> float:
    return kendall_tau([each.before.accuracy for each in found], [each.overall for each in found])


def _loss(found: Sequence[Subnet]) -> float:
    return kendall_tau([-each.before.loss for each in found], [each.overall for each in found])


def _alike(found: Sequence[Subnet]) -> float:
    return kendall_tau([each.before.accuracy for each in found], [each.after.accuracy for each in found])
