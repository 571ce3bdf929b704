"""An artifact's answers against the float model's, task by task."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stages.data.example import Questions
from stages.evaluation.answers import Answer, scores_by_task
from stages.evaluation.bootstrap import retention
from stages.evaluation.scores import Scorer
from stages.schema import ValidateConfig


def tasks_of(questions: Questions, answers: Sequence[Answer]) -> dict[str, Any]:
    """Of the float model's own answers, by task: n, its mean score (fp32), and what else the task's metric tells."""
    scorer, texts = Scorer(questions), [answer.answer for answer in answers]
    found = {}
    for task, scores in scores_by_task(answers).items():
        said = scorer.summary(task, texts)
        del said["score"]
        found[task] = {"n": len(scores), "fp32": float(scores.mean()), **said}
    return found


def compare(
    questions: Questions, artifact: Sequence[Answer], reference: Sequence[Answer], config: ValidateConfig
) -> dict[str, Any]:
    """{"tasks": {task: ...}, "overall": ...}, each with n, metric, fp32 and artifact (mean scores), retention with its
    interval, flips: the share of questions whose score changed, in either direction, and what else the metric tells of
    the artifact's answers (exact, cer, anls, cider). The two must answer the same questions in the same order."""
    asked = [(answer.task, answer.question, answer.expected) for answer in artifact]
    if asked != [(answer.task, answer.question, answer.expected) for answer in reference]:
        raise ValueError("the artifact and the reference answered different questions")
    scorer, texts = Scorer(questions), [answer.answer for answer in artifact]
    before: dict[str | None, Any] = {**scores_by_task(reference), None: _scores(reference)}
    after: dict[str | None, Any] = {**scores_by_task(artifact), None: _scores(artifact)}
    found = {}
    for task, scores in before.items():
        kept = retention(
            after[task], scores, resamples=config.resamples, confidence=config.confidence, seed=config.seed
        )
        said = scorer.summary(task, texts)
        del said["score"]
        found[task] = {
            "n": len(scores),
            "fp32": float(scores.mean()),
            "artifact": float(after[task].mean()),
            "retention": kept.value,
            "retention_low": kept.low,
            "retention_high": kept.high,
            "flips": float((scores != after[task]).mean()),
            **said,
        }
    return {"overall": found.pop(None), "tasks": found}


def _scores(answers: Sequence[Answer]) -> Any:
    return np.array([answer.score for answer in answers])
