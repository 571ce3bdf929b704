"""Questions about images -> prompts -> whole greedy answers, by the Python runtime on the bundle's own files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageError
from stages.conformance.png import COLOUR, png
from stages.data.example import Example
from stages.data.image import preprocess
from stages.data.prompt import PromptFormat
from stages.data.source import question_source
from stages.release.client.self_test import described
from stages.release.manifest import Manifest
from stages.runtimes.generate import generate
from stages.runtimes.opening import open_session
from stages.runtimes.session import LanguageSession

SEED = 90  # of the held-out questions; builds ask others
QUESTIONS, MORE = 50, (("ocr_unseen_fonts", 2), ("digit", 2))
MARGIN = 0.05  # between the best two logits of each token: nearer, and another order of sums may choose the other
OTHERS = (
    "What color is the square?", "what colour is this", "read", "?", "how many red squares are there", "yes or no?",
    "describe the image in one sentence, please", "what is 2 + 2?", "\u00bfqu\u00e9 es esto?",
    "\u8fd9\u662f\u4ec0\u4e48\uff1f", "read the word\n", "  read the word",
    "what shape is purple?\tand why", "\U0001f600", "a<|im_end|>b", "{image}{question}", "e\u0301 \u00e9",
)  # fmt: skip


@dataclass(frozen=True)
class Runtime:
    """A bundle that answers. settings: its preprocessing."""

    session: LanguageSession
    prompts: PromptFormat
    settings: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> Runtime:
        """Open the files of a bundle's folder. Raises StageError where the runtime cannot."""
        session = open_session(described(folder, manifest.value["model"]))
        image = int(session.description["image_token_id"]), int(session.description["image_tokens"])
        settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        return cls(session, PromptFormat.open(folder, *image), settings)

    def features(self, image: Path) -> NDArray[np.float32]:
        """Return the image's visual tokens (T, D)."""
        return self.session.encode(preprocess(image, self.settings))

    def answer(
        self, features: NDArray[np.float32], question: str, max_tokens: int | None = None
    ) -> dict[str, Any] | None:
        """Return ids, text, and what ended it: "end" of the answer, "length", or the full "context".

        None where two tokens were so near to each other that another machine may rightly choose the other.
        """
        count, prompt = max_tokens or self.prompts.max_new_tokens, self.prompts.encode(question)
        best: list[NDArray[np.float32]] = []
        ids = generate(
            self.session, prompt, features, end_id=self.prompts.end_id, max_new_tokens=count,
            observe=lambda logits: best.append(np.partition(logits, -2)[-2:]),
        )  # fmt: skip
        if min(float(first - second) for second, first in best) < MARGIN:
            return None
        stop = "end" if len(best) > len(ids) else "length" if len(ids) == count else "context"
        return {"ids": ids, "text": self.prompts.decode(ids), "stop": stop}


def write_answers(folder: Path, runtime: Runtime) -> dict[str, list[dict[str, Any]]]:
    """Write folder/answers/*.png; return "prompts", "answers", "limits" and "refused" of vectors.json."""
    (folder / "answers").mkdir()
    examples = held_out()
    order = dict.fromkeys(example.image_id for example in examples)
    names = {image: f"answers/{number:02}.png" for number, image in enumerate(order)}
    seen: dict[str, NDArray[np.float32]] = {}
    answers: list[dict[str, Any]] = []
    for example in examples:
        name = names[example.image_id]
        if name not in seen:
            (folder / name).write_bytes(png(example.image, COLOUR))
            seen[name] = runtime.features(folder / name)
        if (answer := runtime.answer(seen[name], example.question)) is not None:
            answers.append({"image": name, "task": example.task, "question": example.question, **answer})
    first, features = next(iter(seen.items()))
    for question in OTHERS:
        if (answer := runtime.answer(features, question)) is not None:
            answers.append({"image": first, "question": question, **answer})
    return {
        "prompts": [*prompts(runtime.prompts, [example.question for example in examples])],
        "answers": answers,
        "limits": [*limits(runtime, first, features)],
        "refused": [{"image": first, "question": too_long(runtime), "error": "prompt"}],
    }


def held_out() -> list[Example]:
    """Return questions of all tasks; many about one image, so that there are few images."""
    source = question_source()
    found = source.examples("test", QUESTIONS, SEED)
    for task, count in MORE:
        found += source.of_task(task, count, SEED)
    return found


def prompts(format: PromptFormat, questions: list[str]) -> Iterator[dict[str, Any]]:
    """Yield questions with their prompts' ids, and those that are refused: they hold the image token."""
    for question in dict.fromkeys([*questions, *OTHERS]):
        yield {"question": question, "ids": format.encode(question)}
    token = format.tokenizer.id_to_token(format.image_token_id)
    for question in (token, f"what is {token}?", f"{token}{token}", f"a\n{token}"):
        yield {"question": question, "error": "prompt"}


def limits(runtime: Runtime, image: str, features: NDArray[np.float32]) -> Iterator[dict[str, Any]]:
    """Yield answers that end because of a limit: max_tokens, or the context."""
    asked = [("describe the image", count) for count in (1, 2, 3)] + [
        (filling(runtime, free), None) for free in (0, 1, 3)
    ]
    for question, count in asked:
        if (answer := runtime.answer(features, question, count)) is not None:
            yield {"image": image, "question": question, "max_tokens": count, **answer}


def filling(runtime: Runtime, free: int) -> str:
    """Return a question whose prompt leaves `free` positions of the context. Raises StageError where none was found."""
    wanted = int(runtime.session.description["context"]) - free
    for mark in ("?", "!", " ?", " a", "a"):
        question = "how many stars are there?"
        while (length := len(runtime.prompts.encode(question))) < wanted:
            question += mark * max(1, (wanted - length) // 4)
        if length == wanted:
            return question
    raise StageError(f"no question was found whose prompt has {wanted} tokens", hint="see filling() in answers.py")


def too_long(runtime: Runtime) -> str:
    """Return a question whose prompt has one token more than the context."""
    return filling(runtime, -1)
