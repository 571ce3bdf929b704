"""The backward pass of all sequences through one piece, which measures its weights' Fisher information.

That is, an answer token: the squared gradients of each sequence's loss, summed over the sequences and divided by the
number of tokens that they predict.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from pipelines.errors import StageError
from stages.quantizers.examples import Tokens
from stages.quantizers.streaming_pieces import EMBEDDINGS, NORM, Piece, loaded
from stages.quantizers.streaming_state import Passage, Tensors
from stages.tensorfile import TensorReader, TensorWriter

_ROWS = 8192  # of the head's matrix at a time


def backward(passage: Passage, index: int) -> Path:
    """Run piece `index` backward, leave the gradients for the one before, and return the file of Fisher information.

    Raises StageError for gradients that are not finite, naming the weight.
    """
    piece, path = passage.pieces[index], passage.scratch / f"fisher-{index:03d}.safetensors"
    amount = passage.cost(index, backward=True)
    if path.is_file():
        passage.clock.skip(len(passage.concerned(piece)) * amount)
        return path

    def report() -> None:
        passage.clock.add(amount, f"{piece.name} backward")

    run = {NORM: _head, EMBEDDINGS: _embeddings}.get(piece.name, _piece)
    totals, count = run(passage, index, report), sum(len(each.ids) - each.prompt for each in passage.samples)
    with TensorWriter(path) as writer:
        for name, total in totals.items():
            if not torch.isfinite(total).all():
                raise StageError(
                    f"the gradient of {name} is not finite on the calibration set",
                    hint="The checkpoint is unsound there: look at that layer's weights.",
                )
            writer.add(f"{name}.fisher", total.div_(count).cpu().numpy())
    passage.hidden.forget(index)
    passage.gradients.forget(index + 1)
    return path


def _piece(passage: Passage, index: int, report: Callable[[], None]) -> dict[str, torch.Tensor]:
    """Sums of squared gradients by weight."""
    piece, model = passage.pieces[index], passage.model
    with loaded(model, (piece.name,), passage.checkpoint, passage.device):
        weights = _weights(passage, piece)
        totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}

        def run(sample: int) -> tuple[torch.Tensor, ...]:
            tokens = Tokens.of([passage.samples[sample]]).to(passage.device)
            taken = passage.taken(index, sample)[None].requires_grad_(index > 0)
            with torch.enable_grad():
                given = piece.run(model, taken, tokens)
            wanted = [*weights.values(), *([taken] if index else [])]
            below = passage.gradients.read(index + 1, sample).to(passage.device)[None]
            gradients = torch.autograd.grad(given, wanted, below)
            if index:
                passage.gradients.write(index, sample, gradients[-1][0])
            return gradients

        for gradients in passage.workers.map(run, passage.concerned(piece), alone=piece.vision):
            for total, gradient in zip(totals.values(), gradients, strict=False):
                total.addcmul_(gradient, gradient)
            report()
    return totals


def _weights(passage: Passage, piece: Piece) -> dict[str, torch.Tensor]:
    """The piece's parameters whose Fisher information is asked for."""
    module = passage.model.get_submodule(piece.name)
    named = {f"{piece.name}.{name}": parameter for name, parameter in module.named_parameters()}
    return {name: parameter.requires_grad_() for name, parameter in named.items() if name in passage.layers}


def _head(passage: Passage, index: int, report: Callable[[], None]) -> dict[str, torch.Tensor]:
    """The last norm and the head: where the loss is. Of a head that is the table of embeddings as well, also each
    sequence's gradients of the rows that it looks up, for _embeddings. Of two matrices the first is part of what goes
    before: it makes what the second, which is large, takes."""
    model = passage.model
    assert model.config.text is not None
    tied, rows = model.config.text.tie_word_embeddings, _looked_up(passage)
    *inner, last = model.config.text.head_weights
    modules = [name.removesuffix(".weight") for name in (*inner, last)]
    with loaded(model, (NORM, *modules), passage.checkpoint, passage.device):
        weight, before = model.get_parameter(last), [model.get_parameter(name).requires_grad_() for name in inner]
        total, others = torch.zeros_like(weight), [torch.zeros_like(each) for each in before]
        blocks = [slice(start, start + _ROWS) for start in range(0, len(weight), _ROWS)]
        for sample in range(len(passage.samples)):
            tokens = Tokens.of([passage.samples[sample]]).to(passage.device)
            taken = passage.taken(index, sample).requires_grad_()
            predicting = tokens.answers[0, 1:]
            with torch.enable_grad():
                wanted = model.text.norm(taken)[:-1][predicting]
                for each in before:
                    wanted = F.linear(wanted, each)
            hidden = wanted.detach()
            slope = torch.cat(list(passage.workers.map(partial(_logits, hidden, weight), blocks)), dim=1).softmax(-1)
            slope[torch.arange(len(slope), device=slope.device), tokens.ids[0, 1:][predicting]] -= 1
            list(passage.workers.map(partial(_add_square, total, slope, hidden), blocks))
            gradient, *slopes = torch.autograd.grad(wanted, [taken, *before], slope @ weight)
            passage.gradients.write(index, sample, gradient)
            for other, each in zip(others, slopes, strict=True):
                other.addcmul_(each, each)
            if tied:
                used = torch.unique(tokens.ids[0])
                rows.write(0, sample, slope[:, used].T @ hidden)
            report()
    return dict(zip((*inner, last), (*others, total), strict=True))


def _logits(hidden: torch.Tensor, weight: torch.Tensor, rows: slice) -> torch.Tensor:
    return F.linear(hidden, weight[rows])


def _add_square(total: torch.Tensor, slope: torch.Tensor, hidden: torch.Tensor, rows: slice) -> None:
    gradient = slope[:, rows].T @ hidden
    total[rows].addcmul_(gradient, gradient)


def _embeddings(passage: Passage, index: int, report: Callable[[], None]) -> dict[str, torch.Tensor]:
    """The table of embeddings, whose gradient has a row for each token that is looked up, and the images' features."""
    name, config, rows = f"{EMBEDDINGS}.weight", passage.model.config, _looked_up(passage)
    assert config.text is not None
    tied, device = config.text.tie_word_embeddings, passage.device
    total = (_of_the_head(passage, name) if tied else torch.zeros(passage.layers[name].shape)).to(device)
    for sample in range(len(passage.samples)):
        ids = torch.tensor(passage.samples[sample].ids, device=device)
        gradient = passage.gradients.read(index + 1, sample).to(device)
        image = (
            torch.zeros_like(ids, dtype=torch.bool) if config.image_token_id is None else ids == config.image_token_id
        )
        if bool(image.any()):
            passage.gradients.write(index, sample, gradient[image])
        used, places = torch.unique(ids, return_inverse=True)
        looked_up = gradient.new_zeros(len(used), gradient.shape[1]).index_add_(0, places[~image], gradient[~image])
        square = looked_up.square()
        if tied:  # one table, one gradient: (head + lookups)^2, of which the head's own square is counted
            square += 2 * rows.read(0, sample).to(device) * looked_up
        total.index_add_(0, used, square)
        report()
    return {name: total}


def _looked_up(passage: Passage) -> Tensors:
    return Tensors(passage.scratch / "looked_up")


def _of_the_head(passage: Passage, name: str) -> torch.Tensor:
    """The sums that the head left, undone of their division."""
    last = passage.scratch / f"fisher-{len(passage.pieces) - 1:03d}.safetensors"
    count = sum(len(each.ids) - each.prompt for each in passage.samples)
    return torch.from_numpy(TensorReader(last).array(f"{name}.fisher") * count)
