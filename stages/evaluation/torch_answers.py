"""Answers of a torch model, in batches."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stages.models.qwen2 import CachedContext
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
    for rows in by_length(prompts):
        ids = torch.tensor([prompts[row] for row in rows])
        visual = aligned(model, ids, features[rows])
        text = model.config.text
        shape = (len(rows), text.num_key_value_heads, ids.shape[1] + limit, text.head_dim)
        caches = [torch.zeros(shape) for _ in range(2 * text.num_hidden_layers)]
        position, open_rows = 0, set(range(len(rows)))
        for _ in range(limit):
            context = CachedContext(torch.tensor([position]), caches, text)
            hidden = model.text.hidden(model.embed(ids, visual), context)
            chosen = model.text.head(hidden[:, -1]).argmax(-1)
            caches, position = context.caches, position + ids.shape[1]
            for index in sorted(open_rows):
                if int(chosen[index]) == end:
                    open_rows.discard(index)
                else:
                    answers[rows[index]].append(int(chosen[index]))
            if not open_rows:
                break
            ids, visual = chosen[:, None], torch.zeros(len(rows), 1, text.hidden_size)
        done += len(rows)
        tick(done)
    return answers


def by_length(sequences: Sequence[Ids]) -> list[list[int]]:
    """Indices in batches of equal length."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, sequence in enumerate(sequences):
        groups[len(sequence)].append(index)
    return [rows[start : start + BATCH] for _, rows in sorted(groups.items()) for start in range(0, len(rows), BATCH)]


def aligned(model: VisionLanguageModel, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """features (B, T, D) moved to where the first T image tokens of ids (B, N) stand: (B, N, D), zeros elsewhere."""
    aligned = torch.zeros(*ids.shape, features.shape[-1])
    places = ids == model.config.image_token_id
    aligned[places & (places.cumsum(1) <= features.shape[1])] = features.flatten(0, 1)
    return aligned
