"""Whether a search beats chance: hypervolumes of accuracy, bytes and latency at equal evaluations, seed by seed."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from engine.figures import Figure

from search.bench import Bench
from search.tables import columns
from stages.searching.hypervolume import hypervolume
from stages.searching.studies import mark
from stages.searching.trials import Trial, point

TARGET = 1.10
SAMPLERS = ("nsga2", "tpe")
CHANCE, TOLD = "random", "random, told the designs"


@dataclass(frozen=True)
class Volumes:
    """One seed of a sampler. curve: the hypervolume after each trial; whole: how many were not given up."""

    by: str
    seed: int
    trials: int
    whole: int
    curve: tuple[float, ...]

    @property
    def value(self) -> float:
        return self.curve[-1]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "value": self.value}


def volumes(bench: Bench) -> list[Volumes]:
    found: dict[tuple[str, int], Volumes] = {}
    for sampler in SAMPLERS:
        trials = bench.trials(sampler).trials()
        for by, seed in dict.fromkeys((trial.by, trial.seed) for trial in trials):
            each = _volumes(by, seed, [trial for trial in trials if (trial.by, trial.seed) == (by, seed)])
            if found.setdefault((by, seed), each) != each:
                raise SystemExit(f"{by}, seed {seed}: not the same trials beside {sampler} as before; remove the cache")
    return [*found.values(), *_told(bench)]


def _told(bench: Bench) -> Iterator[Volumes]:
    """Random search after the uniform designs that the search is told first, at as many trials: the search's own gain
    is what it has beyond this."""
    space, config = bench.supernet(True).space(), bench.configs.search
    designs = {mark(space.uniform(share)) for share in config.designs}
    trials = bench.trials(SAMPLERS[0]).trials()
    for seed in dict.fromkeys(trial.seed for trial in trials):
        own = [trial for trial in trials if trial.seed == seed]
        first = [trial for trial in own if trial.by == SAMPLERS[0] and mark(trial.architecture) in designs]
        drawn = [trial for trial in own if trial.by == CHANCE]
        rest = [trial for trial in drawn if mark(trial.architecture) not in designs]
        yield _volumes(TOLD, seed, [*first, *rest][: len(drawn)])


def _volumes(by: str, seed: int, trials: Sequence[Trial]) -> Volumes:
    """Trials come in the order in which they were proposed."""
    points = [point(trial) if trial.score.whole else None for trial in trials]
    curve = tuple(hypervolume(each for each in points[: count + 1] if each is not None) for count in range(len(points)))
    return Volumes(by, seed, len(trials), sum(each is not None for each in points), curve)


def table(found: Sequence[Volumes]) -> str:
    rows = [("sampler", "seed", "trials", "of which whole", "hypervolume", "/ random's")]
    for each in found:
        chance = next(other.value for other in found if (other.by, other.seed) == (CHANCE, each.seed))
        share = f"{each.value / chance:.3f}" if chance else ""
        rows.append((each.by, str(each.seed), str(each.trials), str(each.whole), f"{each.value:.4f}", share))
    return columns(rows)


def figures(found: Sequence[Volumes]) -> list[Figure]:
    means = {by: fmean(each.value for each in found if each.by == by) for by in (*SAMPLERS, TOLD, CHANCE)}
    seeds = len({each.seed for each in found})
    return [
        Figure(
            f"search: hypervolume, {by} / random",
            means[by] / means[CHANCE] if means[CHANCE] else 0.0,
            "",
            f"{means[by]:.4f} and {means[CHANCE]:.4f}, means of {seeds} seeds",
            TARGET if by == "nsga2" else None,
            at_most=False,
        )
        for by in (*SAMPLERS, TOLD)
    ]
