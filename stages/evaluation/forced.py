"""What a torch model says of each token of given answers (teacher forcing), question by question, in batches."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stages.evaluation.torch_answers import aligned, by_length
from stages.models.qwen2 import MaskedContext
from stages.models.vlm import VisionLanguageModel


@torch.inference_mode()
def forced_logits(
    model: VisionLanguageModel,
    features: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (index, logits (tokens of the answer, vocabulary)) of each question whose answer has a token.

    prompts: hold the image token once a visual token; features (Q, T, D): of their images. answers: with their end
    token. Row i tells what the model expects in place of the answer's token i.
    """
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    for rows in by_length(whole):
        ids = torch.tensor([whole[row] for row in rows])
        count = ids.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool).tril()
        context = MaskedContext(torch.arange(count), mask, model.config.text)
        hidden = model.text.hidden(model.embed(ids, aligned(model, ids, features[rows])), context)
        for index, row in enumerate(rows):
            if answers[row]:
                yield row, model.text.head(hidden[index, len(prompts[row]) - 1 : -1]).numpy()
