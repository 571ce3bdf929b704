"""What is measured of a result, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass
class ProbeConfig:
    """What the shipped weights are run on in torch: `images` (drawn by `seed`, or the first in `folder`, by name) for
    the range of each layer's values, the first of them also with a prompt and `tokens` of text for parity. The last
    bits depend on `threads`."""

    images: int
    tokens: int
    threads: int
    folder: str | None
    seed: int


class ValidationKind(Enum):
    """The shipped files' answers to held-out questions, or their numbers against torch's with the same weights."""

    questions = "questions"
    parity = "parity"


@dataclass
class Gate:
    """A bound on a metric: min or max, the other null. task: null means each task for itself, overall all together."""

    metric: str
    task: str | None = None
    min: float | None = None
    max: float | None = None


@dataclass
class QuestionsConfig:
    """The held-out questions that every artifact answers: per_task of each task, drawn by `seed`.

    path: a folder of your own questions and images (see stages/data/dataset); null: the procedural ones. per_task null:
    all that the folder has. tasks: {task that a folder's lines may name: exact, cer, anls or cider, its metric (see
    stages/evaluation/scores)}; the procedural tasks have theirs."""

    path: str | None
    per_task: int | None
    seed: int
    tasks: dict[str, str]


class Prediction(Enum):
    """Which end of a predicted interval a gate looks at: the worse one for it, or the value in its middle."""

    worst = "worst"
    value = "value"


@dataclass
class ValidateConfig:
    """kind: what is measured, by so many threads. resamples and confidence of the paired bootstrap of questions, drawn
    by `seed`; and what must hold: gates, which look at that end of what is predicted. advise: where the low end of a
    task's retention is below this, what would help is measured, which takes about as long as asking the questions did;
    null: never."""

    kind: ValidationKind
    threads: int
    resamples: int
    confidence: float
    seed: int
    predictions: Prediction
    advise: float | None
    gates: list[Gate]


@dataclass
class PackageConfig:
    """name and version of the bundle, as the manifest gives them. licence: of the weights, an SPDX expression, null
    where nothing is to be said of it; licence_file: its text. self_test: how many questions, which these files answered
    right, an installation asks before it is used; those of one's own dataset travel with the bundle only with
    own_questions."""

    name: str
    version: str
    licence: str | None
    licence_file: str | None
    self_test: int
    own_questions: bool
