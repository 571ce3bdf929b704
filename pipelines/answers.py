"""Answers of two builds to the same questions, held against each other question by question.

A stage whose `answers` names a file of its artifact leaves there one JSON object a line, in an order of its own:
{"task": text, "question": text, "expected": text, "answer": text, "score": number, ...}; "image" (a digest of the image
that was asked about) and "id", where it has them, also say what was asked. The same questions in the same order make
two builds comparable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import StoreError

ASKED = ("task", "id", "image", "question", "expected")
IMAGE = ASKED.index("image")
RESAMPLES, CONFIDENCE, SEED = 2000, 0.95, 20
AT_ONCE = 1 << 20  # counts that are drawn at once: 8 MiB


@dataclass(frozen=True)
class Answered:
    """asked: all that says which question it was, in the order of ASKED; "" for what the line does not tell."""

    asked: tuple[str, ...]
    task: str
    answer: str
    score: float


@dataclass(frozen=True)
class Paired:
    """What became of a task's questions, or of all of them (task None).

    before, after: mean scores. low, high: the bounds of `difference`, the paired bootstrap's (Efron, Tibshirani 1993).
    answers_changed, scores_changed: shares of the questions. rose, fell: how many scores did. p: how likely as many or
    more would have gone one way if both ways were equally likely: an exact sign test, which for scores of 0 and 1 is
    the exact test of McNemar (1947). It is not corrected for the number of tasks.
    """

    task: str | None
    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    answers_changed: float
    scores_changed: float
    rose: int
    fell: int
    p: float


def paired(before: Sequence[Answered], after: Sequence[Answered]) -> list[Paired]:
    """Return what changed, over all questions and then task by task. Both must have been asked the same."""
    tasks = list(dict.fromkeys(each.task for each in before))
    pairs = list(zip(before, after, strict=True))
    found = [of_task(None, pairs)] if len(tasks) > 1 else []
    return [*found, *(of_task(task, [pair for pair in pairs if pair[0].task == task]) for task in tasks)]


def of_task(task: str | None, pairs: Sequence[tuple[Answered, Answered]]) -> Paired:
    """Return what changed in these questions, of which there is at least one."""
    n = len(pairs)
    differences = [after.score - before.score for before, after in pairs]
    rose, fell = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    low, high = interval(differences)
    return Paired(
        task=task,
        n=n,
        before=sum(before.score for before, _ in pairs) / n,
        after=sum(after.score for _, after in pairs) / n,
        difference=sum(differences) / n,
        low=low,
        high=high,
        answers_changed=sum(before.answer != after.answer for before, after in pairs) / n,
        scores_changed=(rose + fell) / n,
        rose=rose,
        fell=fell,
        p=sign_test(rose, fell),
    )


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of the mean of paired differences.

    Only how often each value is drawn matters. Graded scores may differ by as many values as there are questions: few
    resamples are drawn at once, so that memory does not grow with both.
    """
    import numpy as np

    values, counts = np.unique(np.asarray(differences, np.float64), return_counts=True)
    n, chance = len(differences), np.random.RandomState(SEED)
    step = max(1, AT_ONCE // len(values))
    sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    means = np.concatenate([chance.multinomial(n, counts / n, size=size) @ values / n for size in sizes])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def sign_test(rose: int, fell: int) -> float:
    """Return the two-sided p of so many rises and falls, exactly."""
    n = rose + fell
    tail = sum(math.comb(n, each) for each in range(min(rose, fell) + 1))
    return min(1.0, float(2 * tail / 2**n))


def other_questions(before: Sequence[Answered], after: Sequence[Answered]) -> str:
    """Return in words why the answers cannot be paired, or ""."""
    if len(before) != len(after):
        return f"other questions: {len(before)} before, {len(after)} after"
    for place, (old, new) in enumerate(zip(before, after, strict=True), 1):
        if old.asked == new.asked:
            continue
        if without_image(old) != without_image(new):
            return f"other questions: number {place} was {shown(old)} before, and is {shown(new)}"
        if not (old.asked[IMAGE] and new.asked[IMAGE]):
            return "one of the builds does not say which images it asked about: build it again"
        return f"other images: that of number {place}, {shown(new)}, is another one"
    return "" if before else "no questions"


def without_image(answer: Answered) -> tuple[str, ...]:
    return (*answer.asked[:IMAGE], *answer.asked[IMAGE + 1 :])


def shown(answer: Answered) -> str:
    """Return what was asked, in short; an image's digest tells nobody anything."""
    return repr(" ".join(filter(None, without_image(answer)))[:80])


def read_answers(data: bytes, where: str) -> list[Answered]:
    """Return the answers in the bytes of a file; `where` names it. Raises StoreError."""
    found = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):  # a text may hold other line ends
        if not line.strip():
            continue
        try:
            found.append(one(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(
                f"{where}, line {number}: no answer: {type(error).__name__}: {error}",
                hint='each line is {"task", "question", "expected", "answer", "score", ...}',
            ) from error
    return found


def one(value: dict[str, Any]) -> Answered:
    """Return the answer that a line tells. Raises KeyError and the like where it tells none."""
    score = float(value["score"])
    if not math.isfinite(score):
        raise ValueError(f"score is {score}")
    asked = tuple(str(value.get(key, "")) for key in ASKED)
    return Answered(asked, str(value["task"]), str(value["answer"]), score)
