"""What all parts share: the supernet, the searches, recovered subnets and what they answer."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.workspace import Workspace
from search.settings import DEVICE, REFERENCE, SEED, Configs, Settings
from search.steps import Steps, digest_of
from stages.artifacts import Checkpoint
from stages.baseline import baseline
from stages.elastic.space import Architecture
from stages.evaluation.answers import read_answers
from stages.evaluation.bootstrap import Retention, retention
from stages.schema import QuestionsConfig
from stages.schema.search import LatencySource, RecoverConfig
from stages.search import search
from stages.search_artifacts import Supernet, Trials
from stages.searching.costs import Costs
from stages.searching.recovery import recover_candidate
from stages.searching.refinement import order, refined
from stages.searching.trials import Cost, Score, Trial
from stages.supernet import supernet

# What each step's result depends on, of stages/, beside the configuration and its inputs.
_MODEL = ("models", "data")
_ELASTIC = (*_MODEL, "distillation", "elastic")
_PRICED = ("bytes", "calibration", "hardware", "latency_sources", "operators", "times", "work")
_PRICES = tuple(f"devices/{name}.py" for name in _PRICED)
_SEARCHING = tuple(f"searching/{name}.py" for name in ("costs", "exploring", "judge", "studies", "trials"))
SOURCES = {
    "supernet": (*_ELASTIC, "supernet.py"),
    "search": (*_ELASTIC, *_SEARCHING, *_PRICES, "search.py"),
    "listed": (*_ELASTIC, *_SEARCHING, *_PRICES, "searching/refinement.py"),
    "recovered": (*_ELASTIC, "searching/recovery.py", "searching/judge.py"),
    "answers": (
        *_MODEL,
        "baseline.py",
        *(f"evaluation/{name}.py" for name in ("answers", "reference", "scores", "text_metrics", "torch_answers")),
    ),
    "host": (*_MODEL, "devices/host.py", "lowering/onnx", "runtimes/ort.py"),
}


@dataclass(frozen=True)
class Recovered:
    """score: on questions like those of the training, by which the recover stage ranks."""

    checkpoint: Checkpoint
    score: Score


class Bench:
    """The reference model's. Nothing is computed before it is asked for."""

    def __init__(self, steps: Steps, settings: Settings):
        self.steps, self.settings = steps, settings
        self.reference = Checkpoint(REFERENCE)
        self.configs: Configs = settings.configs("search=nsga2")
        self.scores, self.supernet, self.costs = cache(self._scores), cache(self._supernet), cache(self._costs)

    def trials(self, sampler: str) -> Trials:
        """Of the sampler and of random search beside it, all seeds."""
        source, configs = self.supernet(True), self.settings.configs(f"search={sampler}")
        return Trials(
            self.steps.made(
                f"search-{sampler}",
                lambda work: search(source, configs.search, configs.devices, work),
                of=(_model(source), configs.search, configs.devices),
                sources=SOURCES["search"],
                supernet=source,
                config=configs.search,
            )
        )

    def listed(self, fitting: dict[str, Trial], fits: Callable[[Cost], bool], bounds: str) -> list[dict[str, Any]]:
        """The candidates among trials that fit, by mark, and what lies beside the best of them; bounds: what `fits`
        says, in words."""
        source, config = self.supernet(True), self.configs.shortlist
        costs = self.costs(LatencySource.predicted)

        def make(work: Workspace) -> None:
            found = refined(fitting, source.space(), costs.of, fits, config, work)
            best = sorted(found.values(), key=order)[: config.candidates]
            rows = [{"architecture": dict(each.architecture), "score": asdict(each.score)} for each in best]
            (work.out / "candidates.json").write_text(json.dumps(rows), encoding="utf-8")

        of = (_model(source), config, sorted(fitting), bounds)
        place = self.steps.made("listed", make, of=of, sources=SOURCES["listed"], supernet=source, config=config)
        return list(json.loads((place / "candidates.json").read_text(encoding="utf-8")))

    def recovered(self, trained: bool, architecture: Architecture, steps: int | None = None) -> Recovered:
        """The architecture cut out of the supernet (not trained: of the sorted model), after so many steps of the
        shipped recovery; None: as shipped."""
        source, config = self.supernet(trained), self.recovery(steps)

        def make(work: Workspace) -> None:
            found = recover_candidate(self.reference, source, {"architecture": dict(architecture)}, config, work)
            (work.out / "score.json").write_text(json.dumps(found), encoding="utf-8")

        of = (_model(source), _model(self.reference), sorted(architecture.items()), config)
        place = self.steps.made("recovered", make, of=of, sources=SOURCES["recovered"])
        return Recovered(Checkpoint(place), Score(**json.loads((place / "score.json").read_text(encoding="utf-8"))))

    def recovery(self, steps: int | None = None) -> RecoverConfig:
        config = self.configs.recover
        return config if steps is None else replace(config, training=replace(config.training, steps=steps))

    def answered(self, checkpoint: Checkpoint) -> float:
        """Overall accuracy on the held-out questions: the mean over the tasks, of which each has as many questions."""
        return float(self.scores(checkpoint.path).mean())

    def kept(self, checkpoint: Checkpoint, reference: Checkpoint) -> Retention:
        """Overall accuracy as a share of another's, with its interval by the paired bootstrap of questions."""
        config = self.configs.validate
        said = {"resamples": config.resamples, "confidence": config.confidence, "seed": config.seed}
        return retention(self.scores(checkpoint.path), self.scores(reference.path), **said)

    def measured(self, architectures: list[dict[str, int]]) -> list[float]:
        """Of each the latency of an answer as a share of the full model's, both measured on this machine's ONNX
        Runtime with one thread, one after the other."""

        def make(work: Workspace) -> None:
            costs = self.costs(LatencySource.host)
            found = [costs.of(each).latency_share for each in architectures]
            (work.out / "shares.json").write_text(json.dumps(found), encoding="utf-8")

        of = (_model(self.reference), self.configs.search, [sorted(each.items()) for each in architectures])
        place = self.steps.made("host", make, of=of, sources=SOURCES["host"])
        return list(json.loads((place / "shares.json").read_text(encoding="utf-8")))

    @property
    def full(self) -> Cost:
        return self.costs(LatencySource.predicted).full

    def _supernet(self, trained: bool) -> Supernet:
        configs = self.configs if trained else self.settings.configs("search=nsga2", "supernet=sorted")
        config = configs.supernet if trained else replace(configs.supernet, steps=0)  # a trial run says its own steps
        return Supernet(
            self.steps.made(
                "supernet" if trained else "sorted",
                lambda work: supernet(self.reference, config, work),
                of=(_model(self.reference), config),
                sources=SOURCES["supernet"],
            )
        )

    def _scores(self, path: Path) -> NDArray[np.float64]:
        """(questions,), task by task, in the same order for every model."""
        checkpoint, config = Checkpoint(path), QuestionsConfig(None, self.settings.per_task, SEED, {})
        place = self.steps.made(
            "answers",
            lambda work: baseline(checkpoint, config, work),
            of=(_model(checkpoint), config),
            sources=SOURCES["answers"],
            checkpoint=checkpoint,
            config=config,
        )
        return np.array([answer.score for answer in read_answers(place / "answers.jsonl")])

    def _costs(self, latency: LatencySource) -> Costs:
        """Of DEVICE alone."""
        space, config = self.supernet(False).space(), replace(self.configs.search, latency=latency)
        size = (REFERENCE / "tokenizer.json").stat().st_size
        return Costs(space, config, {DEVICE: self.configs.devices[DEVICE]}, size)


def _model(model: Any) -> str:
    """A digest of weights and shape."""
    return digest_of(
        model.weights, *(path for name in ("config.json", "space.json") if (path := model.path / name).is_file())
    )
