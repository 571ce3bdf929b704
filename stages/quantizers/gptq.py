"""GPTQ (Frantar et al., arXiv:2210.17323): columns are rounded one by one; those still to come make up for the error.

The same pass serves affine grids and palettes; only how a column is rounded differs.
"""

from typing import Protocol

import torch

from pipelines.errors import StageError
from stages.quantizers.palettize import Codebook, codebook
from stages.quantizers.refine import refine_affine, refine_palette, row_errors
from stages.quantizers.results import Affine, Palette
from stages.quantizers.rtn import affine_grid, decode, encode, round_to_nearest

_BLOCK = 128  # columns whose errors are gathered before they are spread over the rest


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
) -> Affine:
    """weight: float32 (out, in), group_size divides in; second_moment: (in, in), the mean of x x^T.

    damping: share of the mean diagonal that is added to it. activation_order: columns of large inputs first, with grids
    set beforehand; otherwise each group's grid is set when its turn comes. A row for which rounding to nearest does
    better keeps that, so the weighted error never exceeds round_to_nearest's. Raises StageError for a second moment
    that is no such matrix.
    """
    inverse, order = _inverse(second_moment, damping, activation_order)
    saliency = 1 / inverse.diagonal().square()
    plain = round_to_nearest(weight, bits, group_size, symmetric)
    grid = _AffineGrid(weight, bits, group_size, symmetric, search, saliency, order if activation_order else None)
    codes = _compensated(weight, inverse, order, grid, group_size)
    tuned = Affine(codes, grid.scales, grid.zero_points)
    keep = row_errors(weight, plain.dense(), second_moment) <= row_errors(weight, tuned.dense(), second_moment)
    chosen = keep.unsqueeze(1)
    result = Affine(
        torch.where(chosen, plain.codes, tuned.codes),
        torch.where(chosen, plain.scales, tuned.scales),
        torch.where(chosen, plain.zero_points, tuned.zero_points),
    )
    return refine_affine(weight, result, _damped(second_moment, damping).float(), bits, refinement)


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
) -> Palette:
    """As gptq_affine, onto palettes that group_size rows share (group_size divides out), made by weighted k-means
    (see palettize) with importance (out, in); None: the columns' saliency. Of vectors, as many rows of a column are
    rounded together (GPTVQ, arXiv:2402.15319)."""
    inverse, order = _inverse(second_moment, damping, activation_order)
    saliency = torch.empty(weight.shape[1]).scatter_(0, order, 1 / inverse.diagonal().square())
    weights = saliency if importance is None else importance
    book = codebook(weight, bits, group_size, weights, channel_scale=channel_scale, vector=vector)
    plain = book.encode(weight)
    tuned = _compensated(weight, inverse, order, _PaletteGrid(book), 1)
    keep = row_errors(weight, book.decode(plain), second_moment) <= row_errors(
        weight, book.decode(tuned), second_moment
    )
    together = keep.reshape(-1, vector).all(1, keepdim=True)
    result = book.coded(torch.where(together, plain, tuned))
    return refine_palette(weight, result, _damped(second_moment, damping).float(), refinement)


class _Grid(Protocol):
    vector: int  # rows that a code stands for

    def prepare(self, position: int, columns: torch.Tensor) -> None:
        """Columns (out, n) from `position` on, compensated so far; n is at least the group's size."""

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
    ):
        self.bits, self.group_size, self.symmetric, self.search = bits, group_size, symmetric, search
        self.fixed, self.saliency = order is not None, saliency
        groups = weight.reshape(len(weight), -1, group_size)
        importance = saliency if order is None else torch.empty_like(saliency).scatter_(0, order, saliency)
        self.scales, self.zero_points = affine_grid(
            groups, bits, symmetric, search and self.fixed, importance.reshape(-1, group_size)
        )

    def prepare(self, position: int, columns: torch.Tensor) -> None:
        if self.fixed or position % self.group_size:
            return
        group, importance = position // self.group_size, self.saliency[position : position + self.group_size]
        self.scales[:, group], self.zero_points[:, group] = affine_grid(
            columns[:, : self.group_size], self.bits, self.symmetric, self.search, importance
        )

    def round(self, column: int, position: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        group = column // self.group_size
        scales, zero_points = self.scales[:, group], self.zero_points[:, group]
        codes = encode(values, scales, zero_points, self.bits)
        return codes, decode(codes, scales, zero_points)


class _PaletteGrid:
    def __init__(self, book: Codebook):
        self.book, self.vector = book, book.vector

    def prepare(self, position: int, columns: torch.Tensor) -> None:
        """Palettes are set beforehand."""

    def round(self, column: int, position: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = self.book.encode(values.unsqueeze(1), slice(column, column + 1))
        return codes[:, 0], self.book.decode(codes)[:, 0]


def _inverse(second_moment: torch.Tensor, damping: float, activation_order: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The upper Cholesky factor of the inverse Hessian, float32, and the order of the columns in it.

    Inputs that calibration never saw get a diagonal of their own: they are rounded to nearest and move nothing.
    """
    hessian = _damped(second_moment, damping)
    order = torch.arange(len(hessian))
    if activation_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed):
        raise StageError(
            f"a layer's second moment is not positive definite with damping {damping}",
            hint="Raise quantize.damping, or calibrate.samples.",
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float(), order


def _damped(second_moment: torch.Tensor, damping: float) -> torch.Tensor:
    """float64, with a share of the mean diagonal added; an input that was never seen has just that mean."""
    hessian = second_moment.double().clone()
    if not torch.isfinite(hessian).all():
        raise StageError("a layer's second moment holds NaN", hint="The calibration run overflowed: look at its log.")
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    diagonal[diagonal == 0] = mean or 1.0
    diagonal += damping * (mean or 1.0)
    return hessian


def _compensated(
    weight: torch.Tensor, inverse: torch.Tensor, order: torch.Tensor, grid: _Grid, group_size: int
) -> torch.Tensor:
    """The codes, uint8 (out, in), of the pass over the columns in their order."""
    rest = weight[:, order].clone()
    columns = rest.shape[1]
    codes = torch.empty(len(rest) // grid.vector, columns, dtype=torch.uint8)
    block = -(-_BLOCK // group_size) * group_size
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part, errors = rest[:, start:stop].clone(), torch.empty(len(rest), stop - start)
        for position in range(start, stop):
            inside = position - start
            grid.prepare(position, part[:, inside:])
            column = int(order[position])
            codes[:, column], values = grid.round(column, position, part[:, inside])
            error = (part[:, inside] - values) / inverse[position, position]
            part[:, inside + 1 :] -= error.unsqueeze(1) * inverse[position, position + 1 : stop]
            errors[:, inside] = error
        rest[:, stop:] -= errors @ inverse[start:stop, stop:]
    return codes
