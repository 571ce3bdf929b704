"""GPTQ (Frantar et al., arXiv:2210.17323): columns are rounded one by one; those still to come make up for the error.

The same pass serves affine grids and palettes; only how a column is rounded differs. It is written as LDLQ (QuIP,
arXiv:2307.13304, which shows that the two are one): with H = U D U^T, U upper with ones on its diagonal, each column is
rounded behind adding the errors of those before it times its column of U. That takes one Cholesky factorization of H,
a quarter of the work of GPTQ's, and no inverse.
"""

from dataclasses import replace
from typing import Protocol

import torch

from pipelines.errors import StageError
from stages.quantizers.palettize import Codebook, codebook
from stages.quantizers.refine import refine_affine, refine_palette, row_errors
from stages.quantizers.results import Affine, Palette
from stages.quantizers.rtn import affine_grid, decode, encode, round_to_nearest

_BLOCK = 128  # columns whose errors are gathered before the rest hear of them


def gptq_affine(
    weight: torch.Tensor,
    second_moment: torch.Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    *,
    damping: float,
    activation_order: bool,
    search: bool,
    refinement: int = 0,
    mask: torch.Tensor | None = None,
) -> Affine:
    """weight: float32 (out, in), group_size divides in; second_moment: (in, in), the mean of x x^T.

    damping: share of the mean diagonal that is added to it. activation_order: columns of large inputs first, with grids
    set beforehand; otherwise each group's grid is set when its turn comes. A row for which rounding to nearest does
    better keeps that, so the weighted error never exceeds round_to_nearest's. mask: bool (out, in), False where weight
    is 0 and stays so. Raises StageError for a second moment that is no such matrix.
    """
    _check(weight, group_size)
    hessian = damped(second_moment, damping)
    feedback, saliency, order = factor(hessian, damping, activation_order)
    plain = round_to_nearest(weight, bits, group_size, symmetric)
    grid = _AffineGrid(weight, bits, group_size, symmetric, search, saliency, order if activation_order else None, mask)
    codes = _compensated(weight, feedback, order, grid, 0 if activation_order else group_size)
    tuned = Affine(codes, grid.scales, grid.zero_points)
    keep = row_errors(weight, plain.dense(), second_moment) <= row_errors(weight, tuned.dense(), second_moment)
    chosen = keep.unsqueeze(1)
    result = Affine(
        torch.where(chosen, plain.codes, tuned.codes),
        torch.where(chosen, plain.scales, tuned.scales),
        torch.where(chosen, plain.zero_points, tuned.zero_points),
    )
    return refine_affine(weight, result, hessian.float(), bits, refinement, mask)


def gptq_palette(
    weight: torch.Tensor,
    second_moment: torch.Tensor,
    bits: int,
    group_size: int,
    importance: torch.Tensor | None,
    *,
    damping: float,
    activation_order: bool,
    refinement: int = 0,
    channel_scale: bool = False,
    vector: int = 1,
    mask: torch.Tensor | None = None,
) -> Palette:
    """As gptq_affine, onto palettes that group_size rows share (group_size divides out), made by weighted k-means
    (see palettize) with importance (out, in); None: the columns' saliency. Of vectors, as many rows of a column are
    rounded together (GPTVQ, arXiv:2402.15319)."""
    _check(weight, 1)
    hessian = damped(second_moment, damping)
    feedback, ordered, order = factor(hessian, damping, activation_order)
    saliency = torch.empty_like(ordered).scatter_(0, order, ordered)
    weights = saliency if importance is None else importance
    book = codebook(weight, bits, group_size, weights, channel_scale=channel_scale, vector=vector)
    plain = book.encode(weight)
    tuned = _compensated(weight, feedback, order, _PaletteGrid(book, mask), 0)
    plain_errors, tuned_errors = (
        row_errors(weight, replace(book.coded(codes), mask=mask).dense(), second_moment) for codes in (plain, tuned)
    )
    together = (plain_errors <= tuned_errors).reshape(-1, vector).all(1, keepdim=True)
    result = replace(book.coded(torch.where(together, plain, tuned)), mask=mask)
    return refine_palette(weight, result, hessian.float(), refinement)


class _Grid(Protocol):
    vector: int  # rows that a code stands for

    def prepare(self, position: int, columns: torch.Tensor) -> None:
        """A group of columns, (out, group size), compensated so far, begins at `position`."""

    def round(self, column: int, position: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes uint8 (out / vector,) and values float32 (out,), nearest to values of the column."""


class _AffineGrid:
    vector = 1

    def __init__(
        self,
        weight: torch.Tensor,
        bits: int,
        group_size: int,
        symmetric: bool,
        search: bool,
        saliency: torch.Tensor,
        order: torch.Tensor | None,
        mask: torch.Tensor | None,
    ):
        self.mask = mask
        self.bits, self.group_size, self.symmetric, self.search = bits, group_size, symmetric, search
        self.fixed, self.saliency = order is not None, saliency
        groups = weight.reshape(len(weight), -1, group_size)
        importance = saliency if order is None else torch.empty_like(saliency).scatter_(0, order, saliency)
        self.scales, self.zero_points = affine_grid(
            groups, bits, symmetric, search and self.fixed, importance.reshape(-1, group_size)
        )

    def prepare(self, position: int, columns: torch.Tensor) -> None:
        if self.fixed:
            return
        group, importance = position // self.group_size, self.saliency[position : position + self.group_size]
        if self.mask is not None:
            columns = columns * self.mask[:, position : position + self.group_size]
        self.scales[:, group], self.zero_points[:, group] = affine_grid(
            columns, self.bits, self.symmetric, self.search, importance
        )

    def round(self, column: int, position: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        group = column // self.group_size
        scales, zero_points = self.scales[:, group], self.zero_points[:, group]
        codes = encode(values, scales, zero_points, self.bits)
        if self.mask is not None:
            codes = torch.where(self.mask[:, column], codes, zero_points)
        return codes, decode(codes, scales, zero_points)


class _PaletteGrid:
    def __init__(self, book: Codebook, mask: torch.Tensor | None):
        self.book, self.vector, self.mask = book, book.vector, mask

    def prepare(self, position: int, columns: torch.Tensor) -> None:
        """Palettes are set beforehand."""

    def round(self, column: int, position: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = self.book.encode(values.unsqueeze(1), slice(column, column + 1))
        values = self.book.decode(codes)[:, 0]
        return codes[:, 0], values if self.mask is None else torch.where(self.mask[:, column], values, 0.0)


def _check(weight: torch.Tensor, group_size: int) -> None:
    if not torch.isfinite(weight).all():
        raise StageError("a weight holds NaN or infinite values", hint="The checkpoint is unsound: load refuses such.")
    if not 0 < group_size <= weight.shape[1] or weight.shape[1] % group_size:
        raise StageError(
            f"groups of {group_size} columns do not divide a weight of {weight.shape[1]}",
            hint=f"Expected a divisor of {weight.shape[1]}.",
        )


def damped(second_moment: torch.Tensor, damping: float) -> torch.Tensor:
    """float64, with a share of the mean diagonal added; an input that was never seen has a diagonal of just that mean,
    so that it is rounded to nearest and moves nothing."""
    hessian = second_moment.double().clone()
    if not torch.isfinite(hessian).all():
        raise StageError("a layer's second moment holds NaN", hint="The calibration run overflowed: look at its log.")
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    diagonal[diagonal == 0] = mean or 1.0
    diagonal += damping * (mean or 1.0)
    return hessian


def factor(
    hessian: torch.Tensor, damping: float, activation_order: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U float32 (in, in) and the diagonal of D float32 (in,), of the columns in their order; and that order.

    On CUDA where torch sees it, where the last bits of float64, and so a code on the edge, may differ.
    """
    order = torch.arange(len(hessian))
    if activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    flipped = hessian.flip(0, 1).to("cuda" if torch.cuda.is_available() else "cpu")
    lower, failed = torch.linalg.cholesky_ex(flipped)  # of the columns from last to first: upper when turned back
    if int(failed):
        raise StageError(
            f"a layer's second moment is not positive definite with damping {damping}",
            hint="Raise quantize.damping, or calibrate.samples.",
        )
    upper = lower.cpu().flip(0, 1)
    diagonal = upper.diagonal().clone()
    return upper.div_(diagonal).float(), diagonal.square().float(), order


def _compensated(
    weight: torch.Tensor, feedback: torch.Tensor, order: torch.Tensor, grid: _Grid, group_size: int
) -> torch.Tensor:
    """The codes, uint8 (out, in), of the pass over the columns in their order.

    Columns are rows here, so that each lies in one piece. Errors are spread in three steps, of which each reads little
    memory: inside a group when a column's turn comes, inside a block when a group's turn comes, and behind it.
    group_size 0: grids are set beforehand.
    """
    target = weight.T[order].contiguous()
    rest, errors = target.clone(), torch.empty_like(target)
    codes = torch.empty(len(target), len(weight) // grid.vector, dtype=torch.uint8)
    for start, stop in _blocks(len(target), group_size):
        heard = start  # the errors before it are in `rest` up to the block's end
        for position in range(start, stop):
            if group_size and position % group_size == 0:
                if position > heard:
                    rest[position:stop] += feedback[heard:position, position:stop].T @ errors[heard:position]
                    heard = position
                group = slice(position, position + group_size)
                grid.prepare(position, _expected(target[group], rest[group], feedback[group, group]).T.contiguous())
            wanted = rest[position]
            if position > heard:
                wanted = wanted + feedback[heard:position, position] @ errors[heard:position]
            column = int(order[position])
            codes[column], values = grid.round(column, position, wanted)
            errors[position] = target[position] - values
        rest[stop:] += feedback[start:stop, stop:].T @ errors[start:stop]
    return codes.T.contiguous()


def _expected(target: torch.Tensor, heard: torch.Tensor, feedback: torch.Tensor) -> torch.Tensor:
    """What a group's columns (n, out) will be about when their turns come: as if each then met its value exactly.

    target: the weights; heard: with the errors before the group; feedback (n, n): U within the group.
    """
    moved: torch.Tensor = torch.linalg.solve_triangular(feedback.T, heard - target, upper=False, unitriangular=True)
    return target + moved


def _blocks(columns: int, group_size: int) -> list[tuple[int, int]]:
    """Blocks of about _BLOCK columns. A group lies inside a block, or begins with one and goes on over others."""
    if group_size < _BLOCK:
        starts = list(range(0, columns, _BLOCK // max(group_size, 1) * max(group_size, 1)))
    else:
        starts = sorted({*range(0, columns, _BLOCK), *range(0, columns, group_size)})
    return list(zip(starts, [*starts[1:], columns], strict=True))
