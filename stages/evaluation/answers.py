"""answers.jsonl: one line a question, with what was answered and how it scored."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.data.asked import encoded
from stages.data.example import Example, Questions
from stages.data.image import preprocess
from stages.data.prompt import PromptFormat
from stages.evaluation.scores import Scorer
from stages.models.vlm import ModelConfig


@dataclass(frozen=True)
class Answer:
    """score: 0 to 1 (see scores). tokens: the ids of the answer, without the end token. image: the first 16 digits of
    its file's sha256, so that answers to other images are told apart."""

    task: str
    question: str
    expected: str
    answer: str
    score: float
    tokens: list[int]
    image: str = ""


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    lines = [json.dumps(asdict(answer), ensure_ascii=False, sort_keys=True) for answer in answers]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_answers(path: Path) -> list[Answer]:
    return [Answer(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def answered(prompts: PromptFormat, questions: Questions, tokens: Sequence[Sequence[int]]) -> list[Answer]:
    """The answers, in words and scored, of which `tokens` are the ids, in the order of the questions."""
    scorer, found = Scorer(questions), list[Answer]()
    for index, (example, ids) in enumerate(zip(questions, tokens, strict=True)):
        text = prompts.decode(list(ids))
        value = scorer.score(index, text)
        image = hashlib.sha256(encoded(example)).hexdigest()[:16]
        found.append(Answer(example.task, example.question, example.answer, text, value, list(ids), image))
    return found


def scores_by_task(answers: Sequence[Answer]) -> dict[str, NDArray[np.float64]]:
    """The scores of each task's questions, in order; tasks in the order in which they are first met."""
    tasks = dict.fromkeys(answer.task for answer in answers)
    return {task: np.array([answer.score for answer in answers if answer.task == task]) for task in tasks}


def prompt_format(folder: Path, config: ModelConfig) -> PromptFormat:
    """How a language model is asked; without a tower, no token stands for an image."""
    return PromptFormat.open(folder, config.image_token_id, config.vision.tokens if config.vision else 0)


def preprocessed(examples: Iterable[Example], settings: dict[str, object]) -> NDArray[np.float32]:
    """The images of all examples as the encoder takes them, (N, 3, S, S)."""
    return np.concatenate([preprocess(example.image, settings) for example in examples])
