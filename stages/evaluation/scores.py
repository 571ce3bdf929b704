"""What an answer is worth, from 0 to 1 by its task's metric, and what else is told of a task.

    literal   exact: equal, outer blanks apart (procedural tasks)
    word      the same, and the character error rate is told (procedural reading)
    facts     a fact is a noun phrase ("a red star"): those that answer and truth share, divided by the larger of the
              two numbers of facts, so that a missing and an invented one both cost (procedural captions); CIDEr-D is
              told
    exact     equal to an accepted answer, case, blanks and a closing mark apart
    cer       1 - character error rate, and 0 where more than every character is wrong
    anls      as it is
    cider     CIDEr-D / 10

Every score is better when higher, so that retention means the same for all; the metrics themselves are told as they are
defined (see text_metrics).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.data.questions import facts
from stages.evaluation.text_metrics import (
    SCALE,
    Cider,
    anls,
    character_error_rate,
    character_errors,
    folded,
    short_answer,
    tidy,
)

if TYPE_CHECKING:
    from stages.data.example import Example

Value = str | float


@dataclass(frozen=True)
class Kind:
    """metric: its name in metrics.json. equal: texts that it makes one match exactly. told: other metrics."""

    metric: str
    equal: Callable[[str], str]
    told: tuple[str, ...] = ()


KINDS = {
    "literal": Kind("exact", str.strip),
    "word": Kind("exact", str.strip, ("cer",)),
    "facts": Kind("facts", tidy, ("cider",)),
    "exact": Kind("exact", short_answer),
    "cer": Kind("cer", tidy, ("cer",)),
    "anls": Kind("anls", folded, ("anls",)),
    "cider": Kind("cider", short_answer, ("cider",)),
}


class Scorer:
    """Scores of answers to `examples`. Make it of all that are asked, not of a part: CIDEr counts in all captions."""

    def __init__(self, examples: Sequence[Example]):
        self._examples = examples
        corpus = getattr(examples, "corpus", examples)  # of Questions, also what was not drawn
        tasks = {example.task for example in examples if "cider" in KINDS[example.metric].told}
        self._cider = {task: Cider([each.answers for each in corpus if each.task == task]) for task in tasks}

    def score(self, index: int, answer: str) -> float:
        """Of an answer to examples[index], from 0 to 1: what the paired bootstrap draws."""
        example = self._examples[index]
        match KINDS[example.metric].metric:
            case "facts":
                return _shared_facts(answer, example.answer)
            case "cer":
                return max(0.0, 1 - character_error_rate(answer, example.answers))
            case "anls":
                return anls(answer, example.answers)
            case "cider":
                return self._cider[example.task].score(answer, example.answers) / SCALE
            case _:
                return self._exact(example, answer)

    def summary(self, task: str | None, answers: Sequence[str]) -> dict[str, Value]:
        """{"metric", "score": the mean, "exact", and where apt "cer", "anls", "cider"} of a task, null: of all.

        answers: to all examples, in order. metric of tasks that differ in it: "score". cer: all edits divided by all
        characters of the task. What not each question of `task` tells is left out.
        """
        if len(answers) != len(self._examples):
            raise ValueError(f"{len(answers)} answers to {len(self._examples)} questions")
        places = [index for index, example in enumerate(self._examples) if task in (None, example.task)]
        if not places:
            raise ValueError(f"there is no question of task {task}")
        pairs = [(self._examples[index], answers[index]) for index in places]
        kinds = [KINDS[example.metric] for example, _ in pairs]
        metrics = {kind.metric for kind in kinds}
        found: dict[str, Value] = {
            "metric": metrics.pop() if len(metrics) == 1 else "score",
            "score": _mean([self.score(index, answers[index]) for index in places]),
            "exact": _mean([self._exact(example, answer) for example, answer in pairs]),
        }
        told = set.intersection(*(set(kind.told) for kind in kinds))
        if "cer" in told:
            errors = [character_errors(answer, example.answers) for example, answer in pairs]
            found["cer"] = sum(edits for edits, _ in errors) / sum(characters for _, characters in errors)
        if "anls" in told:
            found["anls"] = _mean([anls(answer, example.answers) for example, answer in pairs])
        if "cider" in told:
            found["cider"] = _mean([self._cider[each.task].score(answer, each.answers) for each, answer in pairs])
        return found

    def _exact(self, example: Example, answer: str) -> float:
        equal = KINDS[example.metric].equal
        return float(equal(answer) in map(equal, example.answers))


def score(task: str, answer: str, expected: str) -> float:
    """Of an answer to a procedural question."""
    return _shared_facts(answer, expected) if task == "caption" else float(answer.strip() == expected)


def _shared_facts(answer: str, expected: str) -> float:
    said, true = facts(answer), facts(expected)
    return (said & true).total() / max(said.total(), true.total())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
