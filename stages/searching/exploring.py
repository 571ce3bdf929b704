"""All searches of a build, side by side: each round, what they propose is scored at once and told to each."""

from collections.abc import Sequence
from typing import Any

from pipelines.workspace import Workspace
from stages.elastic.space import Architecture
from stages.searching.costs import Costs
from stages.searching.studies import Study, mark
from stages.searching.trials import Cost, Score, Trial

SCORE = "stages.searching.judge.score_subnet"


class Explorer:
    """studies: that run side by side. prune: see SearchConfig. What one study had scored, another need not."""

    def __init__(self, studies: Sequence[Study], costs: Costs, prune: float | None, total: int, work: Workspace):
        self._studies, self._costs, self._prune, self._total, self._work = studies, costs, prune, total, work
        self._prices: dict[str, Cost] = {}
        self._looks: dict[str, Score] = {}
        self._wholes: dict[str, Score] = {}
        self._done: list[list[Trial]] = [[] for _ in studies]

    def run(self) -> list[list[Trial]]:
        """The trials of each study, once all have ended."""
        self._take_stock()
        while self._round([study.batch() for study in self._studies]):
            self._take_stock()
        return self._done

    def _take_stock(self) -> None:
        for place, study in enumerate(self._studies):
            for architecture in study.told():
                self._price(architecture)
            self._done[place] = study.trials(self._prices)
        done = sum(map(len, self._done))
        self._work.progress(done, self._total, "architectures")

    def _round(self, batches: list[list[tuple[int, Architecture]]]) -> bool:
        """Score and tell a batch of each study; say whether there was any."""
        bars = [
            {number: self._bar(self._done[place], self._price(architecture)) for number, architecture in batch}
            for place, batch in enumerate(batches)
        ]
        self._score(batches, bars)
        for study, batch, bar in zip(self._studies, batches, bars, strict=True):
            scored = []
            for number, architecture in batch:
                score = study.kept(number) or self._known(architecture, bar[number])
                assert score is not None
                study.keep(number, score)
                scored.append((number, score, self._price(architecture)))
            study.tell(scored)
        return any(batches)

    def _score(self, batches: list[list[tuple[int, Architecture]]], bars: list[dict[int, float | None]]) -> None:
        """Have all scored that no study knows, as far as the least demanding asks."""
        waiting: dict[str, dict[str, Any]] = {}
        askers: dict[str, list[tuple[Study, int, float | None]]] = {}
        for study, batch, bar in zip(self._studies, batches, bars, strict=True):
            for number, architecture in batch:
                if study.kept(number) is None and self._known(architecture, bar[number]) is None:
                    key, least = mark(architecture), bar[number]
                    if key in waiting:
                        other = waiting[key]["bar"]
                        least = None if least is None or other is None else min(least, other)
                    waiting[key] = {"architecture": dict(architecture), "bar": least}
                    askers.setdefault(key, []).append((study, number, bar[number]))
        items = list(waiting.values())
        for index, found in self._work.map(SCORE, items):
            architecture = items[index]["architecture"]
            self._looks[mark(architecture)] = Score(**found["look"])
            if found["whole"] is not None:
                self._wholes[mark(architecture)] = Score(**found["whole"])
            for study, number, bar in askers[mark(architecture)]:
                score = self._known(architecture, bar)
                assert score is not None
                study.keep(number, score)  # at once: a kill loses what runs, and nothing that has run

    def _known(self, architecture: Architecture, bar: float | None) -> Score | None:
        """The score under a bar, where what was measured suffices for it."""
        key = mark(architecture)
        if key in self._looks and bar is not None and self._looks[key].accuracy < bar:
            return self._looks[key]
        return self._wholes.get(key)

    def _bar(self, trials: Sequence[Trial], cost: Cost) -> float | None:
        """What a first look must show: not much less than the best whose every cost is no more."""
        if self._prune is None:
            return None
        cheaper = [
            trial.score.accuracy
            for trial in trials
            if trial.score.whole
            and trial.cost.byte_share <= cost.byte_share
            and trial.cost.latency_share <= cost.latency_share
        ]
        return max(cheaper) - self._prune if cheaper else None

    def _price(self, architecture: Architecture) -> Cost:
        return self._prices.setdefault(mark(architecture), self._costs.of(architecture))
