"""Some of the questions, put to the shipped files by one of several processes, and held against torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.artifacts import Baseline, Checkpoint, DeviceModel, QuantizedModel
from stages.data.asked import Question, read_asked
from stages.data.image import preprocess
from stages.data.prompt import PromptFormat
from stages.evaluation.answers import prompt_format
from stages.evaluation.batching import batch_size
from stages.evaluation.difference import Difference
from stages.evaluation.forced import forced_logits
from stages.evaluation.torch_answers import encode_images
from stages.models.vlm import VisionLanguageModel
from stages.runtimes.generate import generate
from stages.runtimes.opening import open_session
from stages.runtimes.session import LanguageSession
from stages.schema import ValidateConfig

_ENCODED = 4  # of each batch: images that torch encodes too, with the shipped weights


@dataclass(frozen=True)
class _Opened:
    """All that answering takes. original: the checkpoint that was quantized, with its own prompts and preprocessing."""

    session: LanguageSession
    prompts: PromptFormat
    preprocessing: Mapping[str, Any]
    shipped: VisionLanguageModel
    original: VisionLanguageModel
    original_prompts: PromptFormat
    original_preprocessing: Mapping[str, Any]
    questions: Sequence[Question]


@dataclass(frozen=True)
class _Asked:
    """A batch of questions and what the runtime said. features: each (T, D); logits: each (tokens, V), end included."""

    features: list[NDArray[np.float32]]
    logits: list[NDArray[np.float32]]
    answers: list[list[int]]


def evaluate_part(
    item: Mapping[str, int],
    checkpoint: Checkpoint,
    model: QuantizedModel,
    device_model: DeviceModel,
    baseline: Baseline,
    config: ValidateConfig,
) -> dict[str, Any]:
    """The questions from item["start"] to item["stop"]: tokens of each answer, and sums that `questioning` adds up.

    Each answer is generated token by token by the runtime, from the image through the artifact's own preprocessing.
    """
    torch.set_num_threads(config.threads)
    opened = _opened(*(each.path for each in (checkpoint, model, device_model, baseline)), config.threads)
    part = _Sums()
    batch = batch_size(opened.shipped.config, opened.prompts.max_new_tokens)
    for start in range(item["start"], item["stop"], batch):
        questions = opened.questions[start : min(start + batch, item["stop"])]
        part.add(opened, questions)
    return part.result()


@lru_cache(maxsize=1)
def _opened(checkpoint: Path, model: Path, device_model: Path, baseline: Path, threads: int) -> _Opened:
    quantized, original, shipped = QuantizedModel(model), Checkpoint(checkpoint), DeviceModel(device_model)
    return _Opened(
        open_session(shipped, threads),
        prompt_format(shipped.path, quantized.config()),
        shipped.read_json("preprocessing.json"),
        quantized.model(),
        original.model(),
        prompt_format(original.path, original.config()),
        original.preprocessing(),
        read_asked(baseline),
    )


class _Sums:
    """What is added up over questions.

    runtime: the runtime's logits against torch's with the shipped weights, given the same visual tokens; features: the
    same of visual tokens; kl: of each question, KL(original || shipped files) over the tokens of its answer, in nats,
    given those before; same, agreed: tokens that torch with the shipped, with the original weights would have chosen.
    """

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.runtime, self.features = Difference(), Difference()
        self.kl: list[float] = []
        self.counts: list[int] = []
        self.same = self.agreed = self.prompts = 0
        self.pixels = 0.0

    def add(self, opened: _Opened, questions: Sequence[Question]) -> None:
        pixels = [self._prepared(opened, question) for question in questions]
        prompts = [opened.prompts.encode(question.question) for question in questions]
        original = [opened.original_prompts.encode(question.question) for question in questions]
        self.prompts += sum(prompt == other for prompt, other in zip(prompts, original, strict=True))
        asked = _ask(opened, pixels, prompts)
        self.tokens += asked.answers
        said = [
            [*answer, opened.prompts.end_id][: len(logits)]
            for answer, logits in zip(asked.answers, asked.logits, strict=True)
        ]
        self._against_shipped(opened, pixels, asked, prompts, said)
        self._against_original(opened, questions, asked, original, said)

    def _prepared(self, opened: _Opened, question: Question) -> NDArray[np.float32]:
        """The image as the shipped preprocessing.json has it; how far the checkpoint's has it elsewhere is noted."""
        image = question.image
        found = preprocess(image, opened.preprocessing)
        if opened.preprocessing != opened.original_preprocessing:
            expected = preprocess(image, opened.original_preprocessing)
            same = expected.shape == found.shape
            self.pixels = max(self.pixels, float(np.abs(expected - found).max()) if same else 1.0)
        return found

    def _against_shipped(
        self,
        opened: _Opened,
        pixels: list[NDArray[np.float32]],
        asked: _Asked,
        prompts: list[list[int]],
        said: list[list[int]],
    ) -> None:
        encoded = encode_images(opened.shipped, np.concatenate(pixels[:_ENCODED])).numpy()
        for expected, found in zip(encoded, asked.features, strict=False):
            self.features.add(expected, found)
        features = torch.from_numpy(np.stack(asked.features))
        for index, expected in forced_logits(opened.shipped, features, prompts, said):
            self.runtime.add(expected, asked.logits[index])
            self.same += int((expected.argmax(1) == np.array(said[index])).sum())

    def _against_original(
        self,
        opened: _Opened,
        questions: Sequence[Question],
        asked: _Asked,
        prompts: list[list[int]],
        said: list[list[int]],
    ) -> None:
        prepared = [preprocess(question.image, opened.original_preprocessing) for question in questions]
        features = encode_images(opened.original, np.concatenate(prepared))
        found: dict[int, float] = {}
        for index, expected in forced_logits(opened.original, features, prompts, said):
            before, after = _log_softmax(expected), _log_softmax(asked.logits[index])
            found[index] = float((np.exp(before) * (before - after)).sum())
            self.agreed += int((expected.argmax(1) == np.array(said[index])).sum())
        self.kl += [max(found.get(index, 0.0), 0.0) for index in range(len(questions))]
        self.counts += [len(each) for each in said]

    def result(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "runtime": self.runtime.sums,
            "features": self.features.sums,
            "kl": self.kl,
            "counts": self.counts,
            "same": self.same,
            "agreed": self.agreed,
            "prompts": self.prompts,
            "pixels": self.pixels,
        }


def _ask(opened: _Opened, pixels: list[NDArray[np.float32]], prompts: list[list[int]]) -> _Asked:
    asked = _Asked([], [], [])
    for image, prompt in zip(pixels, prompts, strict=True):
        features, logits = opened.session.encode(image), list[NDArray[np.float32]]()
        answer = generate(
            opened.session,
            prompt,
            features,
            end_id=opened.prompts.end_id,
            max_new_tokens=opened.prompts.max_new_tokens,
            observe=logits.append,
        )
        asked.features.append(features)
        asked.logits.append(np.stack(logits))
        asked.answers.append(answer)
    return asked


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row (N, V)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found
