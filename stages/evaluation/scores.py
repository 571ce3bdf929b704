"""Scores of an answer, from 0 to 1, by task.

Captions are scored by facts: a fact is a noun phrase ("a red star"); the score is the number of facts that answer and
truth share, divided by the larger of the two numbers of facts, so that a missing and an invented one both cost.
Every other task is exact match after stripping white space.
"""

from stages.data.questions import facts


def score(task: str, answer: str, expected: str) -> float:
    if task != "caption":
        return float(answer.strip() == expected)
    said, true = facts(answer), facts(expected)
    return (said & true).total() / max(said.total(), true.total())
