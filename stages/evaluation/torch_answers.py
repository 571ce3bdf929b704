"""Answers of the torch model, in batches: the float checkpoint's, and how a runtime's agree with the quantized one."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stages.models.qwen2 import CachedContext, MaskedContext
from stages.models.vlm import VisionLanguageModel

Ids = Sequence[int]
Tick = Callable[[int], None]
BATCH = 64


@torch.inference_mode()
def encode_images(model: VisionLanguageModel, pixels: NDArray[np.float32]) -> torch.Tensor:
    """pixels (B, 3, S, S), preprocessed -> visual tokens (B, T, hidden_size)."""
    parts = torch.from_numpy(pixels).split(BATCH)
    return torch.cat([model.encode(part) for part in parts])


@torch.inference_mode()
def generate(
    model: VisionLanguageModel,
    features: torch.Tensor,
    prompts: Sequence[Ids],
    *,
    end: int,
    limit: int,
    tick: Tick = lambda done: None,
) -> list[list[int]]:
    """Greedy answers, the end token left out, of at most `limit` tokens. Prompts hold the image token once a visual
    token; features (B, T, D) are their images'. Prompts of one length go through the model together."""
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    for rows in _by_length(prompts):
        ids = torch.tensor([prompts[row] for row in rows])
        aligned = _aligned(model, ids, features[rows])
        text = model.config.text
        shape = (len(rows), text.num_key_value_heads, ids.shape[1] + limit, text.head_dim)
        caches = [torch.zeros(shape) for _ in range(2 * text.num_hidden_layers)]
        position, open_rows = 0, set(range(len(rows)))
        for _ in range(limit):
            context = CachedContext(torch.tensor([position]), caches, text)
            hidden = model.text.hidden(model.embed(ids, aligned), context)
            chosen = model.text.head(hidden[:, -1]).argmax(-1)
            caches, position = context.caches, position + ids.shape[1]
            for index in sorted(open_rows):
                if int(chosen[index]) == end:
                    open_rows.discard(index)
                else:
                    answers[rows[index]].append(int(chosen[index]))
            if not open_rows:
                break
            ids, aligned = chosen[:, None], torch.zeros(len(rows), 1, text.hidden_size)
        done += len(rows)
        tick(done)
    return answers


@torch.inference_mode()
def agreement(
    model: VisionLanguageModel,
    features: torch.Tensor,
    prompts: Sequence[Ids],
    answers: Sequence[Ids],
) -> tuple[int, int]:
    """How many of a runtime's answer tokens (its end token included) the model would have chosen too, given the same
    tokens before; and how many there are."""
    same = total = 0
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    for rows in _by_length(whole):
        ids = torch.tensor([whole[row] for row in rows])
        count = ids.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool).tril()
        context = MaskedContext(torch.arange(count), mask, model.config.text)
        hidden = model.text.hidden(model.embed(ids, _aligned(model, ids, features[rows])), context)
        for index, row in enumerate(rows):
            start = len(prompts[row])
            chosen = model.text.head(hidden[index, start - 1 : -1]).argmax(-1)
            same += int((chosen == ids[index, start:]).sum())
            total += count - start
    return same, total


def _by_length(sequences: Sequence[Ids]) -> list[list[int]]:
    """Indices in batches of equal length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, sequence in enumerate(sequences):
        groups[len(sequence)].append(index)
    return [rows[start : start + BATCH] for _, rows in sorted(groups.items()) for start in range(0, len(rows), BATCH)]


def _aligned(model: VisionLanguageModel, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """features (B, T, D) moved to where the first T image tokens of ids (B, N) stand: (B, N, D), zeros elsewhere."""
    aligned = torch.zeros(*ids.shape, features.shape[-1])
    places = ids == model.config.image_token_id
    aligned[places & (places.cumsum(1) <= features.shape[1])] = features.flatten(0, 1)
    return aligned
