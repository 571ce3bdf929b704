"""Where questions come from: the procedural reference data, by split."""

import random
from collections.abc import Iterator
from typing import Protocol

from stages.data.example import Example
from stages.data.questions import ask
from stages.data.scenes import draw_scene
from stages.evaluation.names import TASKS

__all__ = ["Example", "QuestionSource", "question_source"]

DRAWN = {"ocr": "word", "ocr_unseen_fonts": "word", "digit": "digit"}  # other tasks ask about shapes
METRICS = {"ocr": "word", "ocr_unseen_fonts": "word", "caption": "facts"}  # keys of scores.KINDS; else "literal"


class QuestionSource(Protocol):
    """A set of questions, the same for the same arguments, on every machine."""

    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        """`count` questions; split: "calibration" (drawn like the training data) or "test" (words, digits held out)."""
        ...

    def by_task(self, per_task: int, seed: int) -> list[Example]:
        """`per_task` held-out questions of each task."""
        ...

    def of_task(self, task: str, count: int, seed: int) -> list[Example]:
        """`count` held-out questions of one task: those of by_task."""
        ...


def question_source() -> QuestionSource:
    return _Procedural()


class _Procedural:
    def examples(self, split: str, count: int, seed: int) -> list[Example]:
        examples: list[Example] = []
        index = 0
        while len(examples) < count:
            rng = random.Random(f"{split}:{seed}:{index}")
            scene = draw_scene(rng, held_out=split == "test")
            for question in ask(rng, scene):
                metric = METRICS.get(question.task, "literal")
                answers = (question.answer,)
                examples.append(Example(scene.pixels, question.text, answers, question.task, index, metric))
            index += 1
        return examples[:count]

    def by_task(self, per_task: int, seed: int) -> list[Example]:
        return [example for task in TASKS for example in self.of_task(task, per_task, seed)]

    def of_task(self, task: str, count: int, seed: int) -> list[Example]:
        return list(_of_task(task, count, seed))


def _of_task(task: str, count: int, seed: int) -> Iterator[Example]:
    """One question an image, of images that hold what the task asks about."""
    index = found = 0
    while found < count:
        rng = random.Random(f"test:{task}:{seed}:{index}")
        scene = draw_scene(rng, held_out=True, unseen_fonts=task == "ocr_unseen_fonts", kind=DRAWN.get(task, "shapes"))
        for question in ask(rng, scene):
            if question.task == task.removesuffix("_unseen_fonts"):
                identity = TASKS.index(task) * 1_000_000 + index
                metric = METRICS.get(task, "literal")
                yield Example(scene.pixels, question.text, (question.answer,), task, identity, metric)
                found += 1
        index += 1
