"""What a search has tried, and what each architecture scored and costs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What an architecture takes. parameters: of the extracted checkpoint. bytes: {device: of the artifact}. latency:
    {device: {"encode_ms", "first_token_ms", "token_ms", "answer_ms"}}, predicted or measured on this host; empty where
    none was asked for.

    byte_share, latency_share: of what the full model takes, the mean over the devices (answer_ms is what is compared).
    """

    parameters: int
    bytes: Mapping[str, int]
    latency: Mapping[str, Mapping[str, float]]
    byte_share: float
    latency_share: float


@dataclass(frozen=True)
class Score:
    """accuracy: share of `questions` of which every token of the answer was the most likely one, given those before it
    (for all tasks but captions, exact match of the greedy answer). loss: cross entropy, nats a token. whole: whether
    all questions were asked, or the architecture was given up after the first of them."""

    accuracy: float
    loss: float
    questions: int
    whole: bool


@dataclass(frozen=True)
class Trial:
    """by: the sampler; seed: of the search that it belongs to; number: its place in it."""

    by: str
    seed: int
    number: int
    architecture: Mapping[str, int]
    score: Score
    cost: Cost


def write_trials(path: Path, trials: Iterable[Trial]) -> None:
    path.write_text("".join(json.dumps(asdict(trial), sort_keys=True) + "\n" for trial in trials), encoding="utf-8")


def read_trials(path: Path) -> list[Trial]:
    return [_trial(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _trial(values: dict[str, Any]) -> Trial:
    return Trial(**{**values, "score": Score(**values["score"]), "cost": Cost(**values["cost"])})


def front(trials: Sequence[Trial], value: str = "accuracy") -> list[Trial]:
    """Those that no other beats in score, bytes and latency at once, each architecture once, the cheapest first."""
    distinct: dict[str, Trial] = {}
    for trial in trials:
        if trial.score.whole:
            distinct.setdefault(json.dumps(trial.architecture, sort_keys=True), trial)
    every = list(distinct.values())
    kept = [one for one in every if not any(dominates(other, one, value) for other in every)]
    return sorted(kept, key=lambda trial: (trial.cost.byte_share, trial.cost.latency_share, -trial.score.accuracy))


def dominates(one: Trial, other: Trial, value: str = "accuracy") -> bool:
    """Whether `one` is at least as good in everything, and better in something."""
    mine, theirs = point(one, value), point(other, value)
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def point(trial: Trial, value: str = "accuracy") -> tuple[float, float, float]:
    """(what is lost of the score, share of bytes, share of latency): each the less the better."""
    lost = 1 - trial.score.accuracy if value == "accuracy" else trial.score.loss
    return lost, trial.cost.byte_share, trial.cost.latency_share
