"""The forward pass of all sequences through one piece, which measures what its layers take."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from pipelines.errors import StageError
from stages.models.vlm import VisionLanguageModel
from stages.quantizers.examples import Tokens
from stages.quantizers.layers import is_matrix
from stages.quantizers.statistics import Moments
from stages.quantizers.streaming_pieces import Piece, loaded
from stages.quantizers.streaming_state import Passage, parts
from stages.tensorfile import TensorWriter


def forward(passage: Passage, index: int) -> Path:
    """Run piece `index`, leave what the next one takes, and return the file of second moments and ranges.

    Raises StageError for activations that are not finite, naming the layer.
    """
    piece, path = passage.pieces[index], passage.scratch / f"moments-{index:03d}.safetensors"
    concerned = passage.concerned(piece)
    if path.is_file():
        passage.clock.skip(len(concerned) * passage.cost(index))
        return path
    batches = _batches(passage, concerned)
    totals: dict[str, Moments] = {}
    names = (piece.name, *(_inner_head(passage.model) if index + 1 == len(passage.pieces) else ()))
    with loaded(passage.model, names, passage.checkpoint, passage.device), _Watch(passage, piece) as watch:

        def run(batch: Sequence[int]) -> dict[str, Moments]:
            return _run(passage, index, batch, watch)

        for batch, found in zip(batches, passage.workers.map(run, batches, alone=piece.vision), strict=True):
            for name, moments in found.items():
                total = totals.setdefault(name, Moments.empty(len(moments.total), passage.device))
                total.add(moments)
            passage.clock.add(len(batch) * passage.cost(index), f"{piece.name} forward")
    with TensorWriter(path) as writer:
        for name, total in totals.items():
            total.write(writer, name)
    if not passage.config.fisher:
        passage.hidden.forget(index)
    return path


def _batches(passage: Passage, concerned: Sequence[int]) -> list[Sequence[int]]:
    """A batch has images in all of its sequences, or in none."""
    seen = [index for index in concerned if passage.samples[index].image is not None]
    read = [index for index in concerned if passage.samples[index].image is None]
    return [*parts(seen, passage.config.batch), *parts(read, passage.config.batch)]


@torch.no_grad()
def _run(passage: Passage, index: int, batch: Sequence[int], watch: "_Watch") -> dict[str, Moments]:
    piece, last = passage.pieces[index], index + 1 == len(passage.pieces)
    tokens = Tokens.of([passage.samples[sample] for sample in batch]).to(passage.device)
    taken = _joined([passage.taken(index, sample) for sample in batch])
    with watch.measuring(tokens) as found:
        given = piece.run(passage.model, taken, tokens)
    if last:
        return found | _of_head(passage.model, given.flatten(0, 1), _predicting(tokens).flatten().float())
    for row, sample in enumerate(batch):
        length = given.shape[1] if piece.vision else len(passage.samples[sample].ids)
        passage.hidden.write(index + 1, sample, given[row, :length])
    return found


def _joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of one kind as a batch, short ones padded with zeros at their end."""
    if all(row.shape == rows[0].shape for row in rows):
        return torch.stack(list(rows))
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _of_head(model: VisionLanguageModel, hidden: torch.Tensor, weights: torch.Tensor) -> dict[str, Moments]:
    """What the head's matrices take; hidden: (tokens, D), the normalised last states; weights: (tokens,)."""
    assert model.config.text is not None
    *inner, last = model.config.text.head_weights
    found = {}
    for name in inner:
        found[name] = Moments.of(hidden, weights)
        hidden = F.linear(hidden, model.get_parameter(name))
    return found | {last: Moments.of(hidden, weights)}


def _inner_head(model: VisionLanguageModel) -> list[str]:
    """The modules of the head but for its last, whose outputs need not be known."""
    assert model.config.text is not None
    return [name.removesuffix(".weight") for name in model.config.text.head_weights[:-1]]


def _predicting(tokens: Tokens) -> torch.Tensor:
    """(B, N) bool: the tokens behind which comes one that the model should say."""
    return nn.functional.pad(tokens.answers[:, 1:], (0, 1))


class _Watch:
    """Hooks on the layers of a piece that measure what they take, each thread for its own batch."""

    def __init__(self, passage: Passage, piece: Piece):
        self._passage, self._piece, self._own = passage, piece, threading.local()

    def __enter__(self) -> "_Watch":
        model, start = self._passage.model, self._piece.name
        self._hooks = [
            module.register_forward_hook(self._observer(name))
            for name, module in model.named_modules()
            if (name == start or name.startswith(f"{start}."))
            and not any(module.children())
            and not isinstance(module, nn.Embedding)
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def measuring(self, tokens: Tokens) -> Iterator[dict[str, Moments]]:
        """What the layers of the piece take meanwhile, by weight name."""
        self._own.found, self._own.weights, self._own.last = {}, self._weights(tokens).flatten(), None
        yield self._own.found
        del self._own.found, self._own.weights, self._own.last

    def _weights(self, tokens: Tokens) -> torch.Tensor:
        """(B, N): what each token counts in second moments; 0 where padded."""
        config = self._passage.config
        weights = torch.where(_predicting(tokens), config.answer_token_weight, 1.0)
        image = self._passage.model.config.image_token_id
        if image is not None:
            weights = torch.where(tokens.ids == image, config.image_token_weight, weights)
        return weights * tokens.present

    def _observer(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def observe(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(output)):
                raise StageError(
                    f"the output of {name} is not finite on the calibration set",
                    hint="The checkpoint is unsound there: look at that layer's weights and at those before it.",
                )
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and is_matrix(module)):
                self._measure(f"{name}.weight", module, inputs[0])

        return observe

    def _measure(self, name: str, module: nn.Module, taken: torch.Tensor) -> None:
        found, last = self._own.found, self._own.last
        if last is not None and last[0] is taken:  # of queries, keys and values, and of gate and up
            moments = last[1]
        else:
            weights = self._own.weights if name.startswith("text.") else None
            moments = Moments.of(_as_tokens(taken, module), weights)
            self._own.last = taken, moments
        found[name] = found[name].plus(moments) if name in found else moments


def _as_tokens(taken: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """(..., in) or (B, in, H, W) -> (tokens, in)."""
    if isinstance(module, nn.Conv2d):
        taken = taken.permute(0, 2, 3, 1)
    return taken.reshape(-1, taken.shape[-1])
