"""Questions as tensors: prompt and answer joined, as the model saw them in training (teacher forcing)."""

from collections.abc import Sequence
from dataclasses import dataclass
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
class Batch:
    """B examples, padded on the right to N tokens.

    pixels (B, 3, S, S) float32; ids (B, N) int64; present (B, N) bool, False where padded;
    answers (B, N) bool, True where ids is a token of the answer (its end token included).
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    present: torch.Tensor
    answers: torch.Tensor


def batch_of(checkpoint: Checkpoint, examples: Sequence[Example]) -> Batch:
    """The examples in the checkpoint's own prompt and preprocessing."""
    config, settings = checkpoint.config(), checkpoint.preprocessing()
    prompts = PromptFormat.of(checkpoint.tokenizer(), settings, config.image_token_id, config.vision.tokens)
    rows = []
    for example in examples:
        answer = prompts.tokenizer.encode(example.answer, add_special_tokens=False).ids
        rows.append((prompts.encode(example.question), [*answer, prompts.end_id]))
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    present, answers = torch.zeros(ids.shape, dtype=torch.bool), torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        present[row, :end] = True
        answers[row, len(prompt) : end] = True
    pixels = np.concatenate([preprocess(example.image, settings) for example in examples])
    return Batch(torch.from_numpy(pixels), ids, present, answers)


def forward(model: VisionLanguageModel, batch: Batch) -> torch.Tensor:
    """Logits (B, N, vocab_size), causal."""
    features = model.encode(batch.pixels)
    is_image = batch.ids == model.config.image_token_id
    aligned = features.new_zeros(*batch.ids.shape, features.shape[-1])
    aligned[is_image] = features.flatten(0, 1)
    count = batch.ids.shape[1]
    context = MaskedContext(torch.arange(count), torch.ones(count, count).tril().bool(), model.config.text)
    logits: torch.Tensor = model.text(model.embed(batch.ids, aligned), context)
    return logits


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The summed cross entropy of the answers' tokens, each predicted from the tokens before it."""
    wanted = batch.answers[:, 1:]
    return torch.nn.functional.cross_entropy(logits[:, :-1][wanted], batch.ids[:, 1:][wanted], reduction="sum")
