"""A model some of whose weights are replaced: how far its answers move from the float model's, and in which direction.

What the replaced weights cannot change is computed once: the visual features, and each decoder layer's input.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stages.artifacts import Checkpoint
from stages.data.source import Example, question_source
from stages.evaluation.divergence import AnswerDivergence, SharedImages
from stages.models.qwen2 import MaskedContext
from stages.schema import Measure

_LAYERS = "text.layers."


@dataclass(frozen=True)
class Measured:
    """kl: KL(float || model), nats an answer token. high: kl and two standard errors of it; questions about one image
    count as one observation. agreement: the share of answer tokens whose most likely token is
    the float model's. accuracy: the share of questions of which every answer token is the most likely one, given those
    before it, which is what greedy decoding would answer."""

    kl: float
    high: float
    agreement: float
    accuracy: float


@dataclass
class _Kept:
    """Of one batch, with float weights: features (images, T, D); hidden: the input of each decoder layer, then of the
    last norm, (B, N, D); expected: log probabilities (answer tokens, vocabulary)."""

    features: torch.Tensor
    hidden: list[torch.Tensor]
    expected: torch.Tensor


class ReplacedModel:
    """A checkpoint's float model, whose weights can be replaced for a measurement. For models that fit in memory."""

    def __init__(self, checkpoint: Checkpoint, examples: Sequence[Example], batch: int):
        """Raises StageError for no examples."""
        self._parts = AnswerDivergence(checkpoint, examples, batch).batches
        self._model = checkpoint.model().requires_grad_(False)
        self._depth = len(self._model.text.layers)
        self._kept = [self._keep(part) for part in self._parts]

    def measured(self, weights: Mapping[str, torch.Tensor]) -> Measured:
        """weights: by name, float32, what replaces them, in any shape of the right size."""
        start = min((self._first(name) for name in weights), default=self._depth)
        same, right, questions = 0, 0, 0
        sums: list[torch.Tensor] = []
        with self._replaced(weights), torch.inference_mode():
            for part, kept in zip(self._parts, self._kept, strict=True):
                found = self._predicted(part, kept, start)
                sums.append(_by_image(part, (kept.expected.exp() * (kept.expected - found)).sum(1)))
                best = found.argmax(-1)
                same += int((kept.expected.argmax(-1) == best).sum())
                right += _all_right(part, best)
                questions += len(part.images)
        totals, counts = torch.cat(sums).T
        tokens = float(counts.sum())
        kl = max(float(totals.sum()) / tokens, 0.0)
        error = float((totals - kl * counts).square().sum().sqrt()) / tokens  # of a ratio (Cochran 1977, 6.4)
        return Measured(kl, kl + 2 * error, same / tokens, right / questions)

    def gradients(
        self, weights: Mapping[str, torch.Tensor], names: Sequence[str]
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """The divergence with those weights, and its gradient by each of the weights `names`, float32 (out, in)."""
        parameters = {name: self._model.get_parameter(name) for name in names}
        tokens, total = sum(len(kept.expected) for kept in self._kept), 0.0
        with self._replaced(weights):
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            for part, kept in zip(self._parts, self._kept, strict=True):
                found = self._predicted(part, kept, -1)
                divergence = (kept.expected.exp() * (kept.expected - found)).sum() / tokens
                divergence.backward()  # type: ignore[no-untyped-call]
                total += divergence.item()
            gradients = {
                name: parameter.grad.flatten(1) for name, parameter in parameters.items() if parameter.grad is not None
            }
            for parameter in parameters.values():
                parameter.grad = None
                parameter.requires_grad_(False)
        return total, gradients

    @contextmanager
    def _replaced(self, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
        parameters = {name: self._model.get_parameter(name) for name in weights}
        floats = {name: parameter.data for name, parameter in parameters.items()}
        for name, weight in weights.items():
            parameters[name].data = weight.reshape(floats[name].shape)
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = floats[name]

    def _first(self, name: str) -> int:
        """The first decoder layer whose input a weight changes; -1: the visual features change."""
        if name.startswith(_LAYERS):
            return int(name.removeprefix(_LAYERS).partition(".")[0])
        if name.startswith("text.embed_tokens."):
            return 0
        return self._depth if name.startswith("text.") else -1

    @torch.no_grad()
    def _keep(self, part: SharedImages) -> _Kept:
        features = self._model.encode(part.batch.pixels)
        hidden = [self._embedded(part, features)]
        context = self._context(part)
        for layer in self._model.text.layers:
            hidden.append(layer(hidden[-1], context))
        kept = _Kept(features, hidden, torch.empty(0))
        kept.expected = self._predicted(part, kept, self._depth)
        return kept

    def _predicted(self, part: SharedImages, kept: _Kept, start: int) -> torch.Tensor:
        """Log probabilities (answer tokens, vocabulary), from the input of decoder layer `start` on."""
        text = self._model.text
        if start <= 0:
            features = kept.features if start == 0 else self._model.encode(part.batch.pixels)
            hidden = self._embedded(part, features)
        else:
            hidden = kept.hidden[start]
        context = self._context(part)
        for layer in text.layers[max(start, 0) :]:
            hidden = layer(hidden, context)
        wanted = hidden[:, :-1][part.batch.answers[:, 1:]]
        return text.head(text.norm(wanted)).log_softmax(-1)

    def _embedded(self, part: SharedImages, features: torch.Tensor) -> torch.Tensor:
        ids = part.batch.ids
        aligned = features.new_zeros(*ids.shape, features.shape[-1])
        aligned[ids == self._model.config.image_token_id] = features[part.images].flatten(0, 1)
        return self._model.embed(ids, aligned)

    def _context(self, part: SharedImages) -> MaskedContext:
        count = part.batch.ids.shape[1]
        mask = torch.ones(count, count).tril().bool()
        return MaskedContext(torch.arange(count), mask, self._model.text.config)


def _by_image(part: SharedImages, values: torch.Tensor) -> torch.Tensor:
    """values (answer tokens,): their sum over each image's questions, and how many they are, float64 (images, 2)."""
    images = part.images[part.batch.answers[:, 1:].nonzero()[:, 0]]
    found = torch.zeros(len(part.batch.pixels), 2, dtype=torch.float64)
    return found.index_add_(0, images, torch.stack([values.double(), torch.ones(len(values)).double()], dim=1))


def _all_right(part: SharedImages, best: torch.Tensor) -> int:
    """How many questions have every answer token right; best: (answer tokens,)."""
    wanted = part.batch.answers[:, 1:]
    missed = torch.zeros(wanted.shape, dtype=torch.bool)
    missed[wanted] = best != part.batch.ids[:, 1:][wanted]
    return int((~missed.any(1)).sum())


def judges(checkpoint: Checkpoint, table: Mapping[str, Any]) -> tuple[ReplacedModel, ReplacedModel] | None:
    """By the questions on which a Sensitivity's costs were measured, and by as many others; None where it measured
    nothing."""
    if table["measure"] == Measure.fisher.value:
        return None
    batch = table["questions"]["batch"]
    return ReplacedModel(checkpoint, search_questions(table), batch), ReplacedModel(
        checkpoint, check_questions(table), batch
    )


def search_questions(table: Mapping[str, Any]) -> list[Example]:
    """What costs are measured on."""
    asked = table["questions"]
    return question_source().examples("calibration", asked["samples"], asked["seed"])


def check_questions(table: Mapping[str, Any]) -> list[Example]:
    """As many others, by which what was found is judged."""
    asked = table["questions"]
    return question_source().examples("calibration", 2 * asked["samples"], asked["seed"])[asked["samples"] :]
