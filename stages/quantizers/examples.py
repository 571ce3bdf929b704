"""Sequences as tensors: a prompt and what the model should say after it joined, as it saw them in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stages.artifacts import Checkpoint
from stages.data.image import preprocess
from stages.data.prompt import PromptFormat
from stages.models.qwen2 import MaskedContext
from stages.models.vlm import VisionLanguageModel


class Example(Protocol):
    """image: (H, W, 3) uint8."""

    @property
    def image(self) -> NDArray[np.uint8]: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...


@dataclass(frozen=True)
class Sample:
    """One sequence of token numbers; those from `prompt` on are what the model should say. image: (H, W, 3) uint8, or a
    file; None of text alone."""

    ids: list[int]
    prompt: int
    image: NDArray[np.uint8] | Path | None


@dataclass(frozen=True)
class Tokens:
    """B sequences, padded on the right to N tokens.

    ids (B, N) int64; present (B, N) bool, False where padded; answers (B, N) bool, True where ids is a token that the
    model should say (an answer's end token included).
    """

    ids: torch.Tensor
    present: torch.Tensor
    answers: torch.Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Tokens":
        length = max(len(sample.ids) for sample in samples)
        ids = torch.zeros(len(samples), length, dtype=torch.int64)
        present, answers = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros(ids.shape, dtype=torch.bool)
        for row, sample in enumerate(samples):
            end = len(sample.ids)
            ids[row, :end] = torch.tensor(sample.ids)
            present[row, :end] = True
            answers[row, sample.prompt : end] = True
        return cls(ids, present, answers)

    def to(self, device: torch.device) -> "Tokens":
        return Tokens(self.ids.to(device), self.present.to(device), self.answers.to(device))


@dataclass(frozen=True)
class Batch:
    """Tokens (see there) with an image each: pixels (B, 3, S, S) float32."""

    pixels: torch.Tensor
    ids: torch.Tensor
    present: torch.Tensor
    answers: torch.Tensor


def prompts_of(checkpoint: Checkpoint) -> PromptFormat:
    """How the checkpoint's model is asked."""
    config = checkpoint.config()
    count = config.vision.tokens if config.vision else 0
    return PromptFormat.of(checkpoint.tokenizer(), checkpoint.preprocessing(), config.image_token_id, count)


def sample_of(prompts: PromptFormat, question: str, answer: str, image: NDArray[np.uint8] | Path | None) -> Sample:
    """A question and its answer, with the end token behind it. Raises StageError for an image token in either."""
    prompt = prompts.encode(question)
    said = prompts.tokenizer.encode(answer, add_special_tokens=False).ids
    return Sample([*prompt, *said, prompts.end_id], len(prompt), image)


def batch_of(checkpoint: Checkpoint, examples: Sequence[Example]) -> Batch:
    """The examples in the checkpoint's own prompt and preprocessing."""
    prompts, settings = prompts_of(checkpoint), checkpoint.preprocessing()
    tokens = Tokens.of([sample_of(prompts, each.question, each.answer, None) for each in examples])
    pixels = np.concatenate([preprocess(example.image, settings) for example in examples])
    return Batch(torch.from_numpy(pixels), tokens.ids, tokens.present, tokens.answers)


def forward(model: VisionLanguageModel, batch: Batch) -> torch.Tensor:
    """Logits (B, N, vocab_size), causal."""
    embeddings = embed(model, model.encode(batch.pixels), batch)
    logits: torch.Tensor = model.text(embeddings, causal(model, embeddings))
    return logits


def embed(model: VisionLanguageModel, features: torch.Tensor, tokens: Tokens | Batch) -> torch.Tensor:
    """Embeddings (B, N, hidden_size) of the tokens, with features (B, T, hidden_size) where the image goes."""
    aligned = features.new_zeros(*tokens.ids.shape, features.shape[-1])
    aligned[tokens.ids == model.config.image_token_id] = features.flatten(0, 1)
    return model.embed(tokens.ids, aligned)


def causal(model: VisionLanguageModel, embeddings: torch.Tensor) -> MaskedContext:
    """Each of N tokens sees itself and those before it."""
    assert model.config.text is not None
    count, device = embeddings.shape[1], embeddings.device
    mask = torch.ones(count, count, dtype=torch.bool, device=device).tril()
    return MaskedContext(torch.arange(count, device=device), mask, model.config.text)


def answer_loss(logits: torch.Tensor, batch: Tokens | Batch) -> torch.Tensor:
    """The summed cross entropy of the answers' tokens, each predicted from the tokens before it."""
    wanted = batch.answers[:, 1:]
    return torch.nn.functional.cross_entropy(logits[:, :-1][wanted], batch.ids[:, 1:][wanted], reduction="sum")
