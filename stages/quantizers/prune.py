"""SparseGPT (Frantar and Alistarh, arXiv:2301.00774): the least important weights become zero, the rest make up for it.

The pass is GPTQ's (gptq.py): column after column, with the errors of those before it made up for. What a zero would
cost, w^2 times the column's entry of D, is looked at block by block.
"""

import torch

from stages.quantizers.choices import kept_of
from stages.quantizers.gptq import damped, factor

_BLOCK = 128  # columns among which an unstructured share is chosen


def prune(
    weight: torch.Tensor, second_moment: torch.Tensor, sparsity: float, pattern: str | None, *, damping: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """weight: float32 (out, in) -> the same with zeros, the rest compensated; and mask: bool (out, in), True: kept.

    sparsity: round(sparsity * out * in) weights become zero, exactly. pattern "n:m", instead: n of m are kept along the
    input axis, and at most n of what is left at its end. Zeros that the weight has are the first to go. Raises
    StageError for a second moment that is no such matrix.
    """
    feedback, saliency, _ = factor(damped(second_moment, damping), damping, activation_order=False)
    rows, columns = weight.shape
    target, rest, errors = weight.T.contiguous(), weight.T.clone(), torch.zeros(columns, rows)
    mask = torch.ones(columns, rows, dtype=torch.bool)
    kept, size = kept_of(pattern) if pattern else (0, _BLOCK)
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        cost = rest[start:stop].square() * saliency[start:stop].unsqueeze(1)
        if pattern:
            mask[start:stop] = _most(cost, kept)
        else:
            mask[start:stop] = ~_least(cost, round(sparsity * rows * stop) - round(sparsity * rows * start))
        for position in range(start, stop):
            wanted = rest[position] + feedback[start:position, position] @ errors[start:position]
            rest[position] = torch.where(mask[position], wanted, 0.0)
            errors[position] = target[position] - rest[position]
        rest[stop:] += feedback[start:stop, stop:].T @ errors[start:stop]
    return rest.T.contiguous(), mask.T.contiguous()


def _most(cost: torch.Tensor, kept: int) -> torch.Tensor:
    """True for the `kept` greatest of each column, the first of equals."""
    order = cost.argsort(dim=0, descending=True, stable=True)[:kept]
    return torch.zeros_like(cost, dtype=torch.bool).scatter_(0, order, True)


def _least(cost: torch.Tensor, count: int) -> torch.Tensor:
    """True for the `count` least of all."""
    order = cost.flatten().argsort(stable=True)[:count]
    return torch.zeros(cost.numel(), dtype=torch.bool).scatter_(0, order, True).reshape(cost.shape)
