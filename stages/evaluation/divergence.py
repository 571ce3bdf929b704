"""How far a model with other weights is from the float one: the KL divergence of what both predict of the answers.

The true answer's tokens are given to both (teacher forcing), so that every token is compared and none is sampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipelines.errors import StageError
from stages.artifacts import Checkpoint
from stages.data.source import Example
from stages.models.qwen2 import MaskedContext
from stages.models.vlm import VisionLanguageModel
from stages.quantizers.examples import Batch, batch_of


@dataclass(frozen=True)
class Divergence:
    """kl: KL(float || model) in nats a token, the mean over `tokens` answer tokens; agreement: the share of them whose
    most likely token is the same."""

    kl: float
    agreement: float
    tokens: int


class AnswerDivergence:
    """The float32 model's predictions for the answers of some questions, and any model's divergence from them.

    Questions about one image that stand side by side share its features, and questions of like length share a batch.
    """

    def __init__(self, checkpoint: Checkpoint, examples: Sequence[Example], batch: int = 32):
        if not examples:
            raise StageError("there are no questions to measure the divergence on", hint="Ask for 1 or more.")
        self._batches = _batches(checkpoint, examples, batch)
        reference = checkpoint.model()
        self._reference = [predictions(reference, part) for part in self._batches]

    @property
    def batches(self) -> list["SharedImages"]:
        return self._batches

    def of(self, model: VisionLanguageModel) -> Divergence:
        """model: of the checkpoint's shape, float32, in evaluation mode."""
        total, same, tokens = 0.0, 0, 0
        for part, expected in zip(self._batches, self._reference, strict=True):
            found = predictions(model, part)
            total += float((expected.exp() * (expected - found)).sum(dtype=torch.float64))
            same += int((expected.argmax(-1) == found.argmax(-1)).sum())
            tokens += len(expected)
        return Divergence(max(total / tokens, 0.0), same / tokens, tokens)


@dataclass(frozen=True)
class SharedImages:
    """A batch of B questions whose images are held once. batch.pixels (I, 3, S, S); images (B,): each question's."""

    batch: Batch
    images: torch.Tensor


@torch.inference_mode()
def predictions(model: VisionLanguageModel, part: SharedImages) -> torch.Tensor:
    """Log probabilities (answer tokens, vocabulary), each predicted from the tokens before it."""
    batch = part.batch
    features = model.encode(batch.pixels)[part.images]
    aligned = features.new_zeros(*batch.ids.shape, features.shape[-1])
    aligned[batch.ids == model.config.image_token_id] = features.flatten(0, 1)
    count = batch.ids.shape[1]
    context = MaskedContext(torch.arange(count), torch.ones(count, count).tril().bool(), model.config.text)
    hidden = model.text.hidden(model.embed(batch.ids, aligned), context)
    return model.text.head(hidden[:, :-1][batch.answers[:, 1:]]).log_softmax(-1)


def _batches(checkpoint: Checkpoint, examples: Sequence[Example], size: int) -> list[SharedImages]:
    batches = []
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        first: dict[int, int] = {}
        for index, example in enumerate(part):
            first.setdefault(example.image_id, index)
        places = {image: place for place, image in enumerate(first)}
        whole = batch_of(checkpoint, part)
        batch = Batch(whole.pixels[list(first.values())], whole.ids, whole.present, whole.answers)
        batches.append(SharedImages(batch, torch.tensor([places[example.image_id] for example in part])))
    return batches
