"""An artifact's answers against the float model's, task by task."""

from collections.abc import Sequence
from typing import Any

from stages.evaluation.answers import Answer, scores_by_task
from stages.evaluation.bootstrap import retention
from stages.schema import ValidateConfig


def compare(artifact: Sequence[Answer], reference: Sequence[Answer], config: ValidateConfig) -> dict[str, Any]:
    """By task: n, fp32 and artifact (mean scores), retention with its interval, and flips: the share of questions whose
    score changed, in either direction. The two must answer the same questions in the same order."""
    asked = [(answer.task, answer.question, answer.expected) for answer in artifact]
    if asked != [(answer.task, answer.question, answer.expected) for answer in reference]:
        raise ValueError("the artifact and the reference answered different questions")
    before, after = scores_by_task(reference), scores_by_task(artifact)
    tasks = {}
    for task in before:
        kept = retention(
            after[task], before[task], resamples=config.resamples, confidence=config.confidence, seed=config.seed
        )
        tasks[task] = {
            "n": len(before[task]),
            "fp32": float(before[task].mean()),
            "artifact": float(after[task].mean()),
            "retention": kept.value,
            "retention_low": kept.low,
            "retention_high": kept.high,
            "flips": float((before[task] != after[task]).mean()),
        }
    return tasks
