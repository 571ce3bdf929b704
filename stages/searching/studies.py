"""A search as an Optuna study that can stop anywhere: what it proposes depends on what it was told, on nothing else.

Proposals come in batches. A batch is asked for when all before it have been told, and told in its own order once all of
it is scored; each proposal's sampler is made anew, seeded by the study's seed and the proposal's place. So neither the
number of workers, nor the order in which they end, nor a kill changes what is tried.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from stages.elastic.space import Architecture, Space
from stages.schema.search import Sampler, SearchConfig
from stages.searching.trials import Cost, Score, Trial

_ASKED = 4  # proposals for each architecture that is to be tried, after which a search that repeats itself ends
_SCORE = "score"


class Study:
    """One search of one seed. by: whose proposals. Architectures that come twice are told again, and count once."""

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        by: Sampler,
        seed: int,
        space: Space,
        config: SearchConfig,
    ):
        self.by, self.seed, self._space, self._config = by, seed, space, config
        self._distributions: dict[str, BaseDistribution] = {
            each.name: IntDistribution(0, len(each.values) - 1) for each in space.dimensions
        }
        self._study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=["maximize", "minimize", "minimize"],
            sampler=self._sampler(0),
            load_if_exists=True,
        )

    def batch(self) -> list[tuple[int, Architecture]]:
        """(trial, architecture) of the proposals that wait for their scores; none where the search has ended."""
        proposed = self._proposed()
        told = sum(trial.state is TrialState.COMPLETE for trial in proposed)
        size = self._config.population
        if told == len(proposed) or len(proposed) % size:
            until = (told // size + 1) * size
            self._give_up_halves()
            while len(proposed) < until and not self._ended(proposed):
                self._ask(len(proposed))
                proposed = self._proposed()
        return [(each.number, self._architecture(each)) for each in proposed if each.state is not TrialState.COMPLETE]

    def keep(self, number: int, score: Score) -> None:
        """Note the score of a proposal, which is told when its batch is whole."""
        self._study._storage.set_trial_user_attr(self._trial(number)._trial_id, _SCORE, vars(score))

    def kept(self, number: int) -> Score | None:
        """The score that was noted of a proposal before the search was stopped."""
        values = self._trial(number).user_attrs.get(_SCORE)
        return Score(**values) if values else None

    def tell(self, scored: Sequence[tuple[int, Score, Cost]]) -> None:
        """The whole batch, in its order."""
        for number, score, cost in scored:
            value = score.accuracy if self._config.score.value == "accuracy" else -score.loss
            self._study.tell(number, [value, cost.byte_share, cost.latency_share])

    def told(self) -> list[dict[str, int]]:
        """The architectures of all proposals that have been told."""
        return [self._architecture(each) for each in self._proposed() if each.state is TrialState.COMPLETE]

    def trials(self, cost_of: Mapping[str, Cost]) -> list[Trial]:
        """What was tried, each architecture once; cost_of: by mark."""
        found: dict[str, Trial] = {}
        for trial in self._proposed():
            if trial.state is TrialState.COMPLETE:
                architecture = self._architecture(trial)
                key = mark(architecture)
                score = Score(**trial.user_attrs[_SCORE])
                if key not in found:
                    found[key] = Trial(self.by.value, self.seed, len(found), architecture, score, cost_of[key])
        return list(found.values())

    def _proposed(self) -> list[FrozenTrial]:
        """In order; what was cut short while it was being asked for is none."""
        states = (TrialState.RUNNING, TrialState.COMPLETE)
        return [
            trial
            for trial in self._study.get_trials(deepcopy=False, states=states)
            if trial.params.keys() == self._distributions.keys()
        ]

    def _give_up_halves(self) -> None:
        """Proposals cut short by a kill: samplers would take them for others that run."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.params.keys() != self._distributions.keys():
                self._study.tell(trial.number, state=TrialState.FAIL)

    def _ended(self, proposed: Sequence[FrozenTrial]) -> bool:
        different = {mark(self._architecture(each)) for each in proposed}
        most = min(self._config.trials, self._space.size)
        return len(different) >= most or len(proposed) >= _ASKED * self._config.trials

    def _ask(self, place: int) -> None:
        self._study.sampler = self._sampler(place)
        designs = self._config.designs if self.by is not Sampler.random else []
        if place < len(designs) and not self._study.get_trials(states=(TrialState.WAITING,)):
            self._study.enqueue_trial(self._places(self._space.uniform(designs[place])))
        self._study.ask(self._distributions)

    def _sampler(self, place: int) -> optuna.samplers.BaseSampler:
        text = f"{self.by.value}:{self.seed}:{place}"
        seed = int.from_bytes(sha256(text.encode()).digest()[:4], "little")
        if self.by is Sampler.nsga2:
            return _Nsga2(population_size=self._config.population, seed=seed)
        if self.by is Sampler.tpe:
            return optuna.samplers.TPESampler(n_startup_trials=self._config.population, seed=seed, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)

    def _architecture(self, trial: FrozenTrial) -> dict[str, int]:
        return {each.name: each.values[trial.params[each.name]] for each in self._space.dimensions}

    def _places(self, architecture: Architecture) -> dict[str, int]:
        return {each.name: each.values.index(architecture[each.name]) for each in self._space.dimensions}

    def _trial(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


class _Nsga2(optuna.samplers.NSGAIISampler):
    """Parents in one order, that in which they were tried: Optuna's first proposal of a generation, which selects them,
    has them in another than those that read the selection from the storage, as does the first itself after a kill."""

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)


def mark(architecture: Architecture) -> str:
    """A text that equal architectures share."""
    return json.dumps(architecture, sort_keys=True)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Of what a study's scores depend on: studies of other values are other studies."""
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
