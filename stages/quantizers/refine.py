"""Coordinate descent over codes, and least squares over what they mean: what GPTQ's one pass leaves on the table.

The error of a row's outputs is e H e^T. With all other codes of the row held, the best value of one weight is known in
closed form and rounded to the grid (QuantEase, arXiv:2309.01885), column after column, in passes until nothing moves.
Between passes the scales, or the entries of the palettes, are solved for with the codes held.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from stages.quantizers.palettize import Codebook
from stages.quantizers.results import Affine, Palette
from stages.quantizers.rtn import decode, encode

_BLOCK = 64  # columns whose changes are gathered before the rest hear of them
_RIDGE = 1e-6  # of the normal equations, towards the entries as they are
Nearest = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def refine_affine(
    weight: torch.Tensor,
    start: Affine,
    hessian: torch.Tensor,
    bits: int,
    passes: int,
    mask: torch.Tensor | None = None,
) -> Affine:
    """weight: float32 (out, in); hessian: float32 (in, in), positive definite. No row's error grows. mask: bool (out,
    in), False where the code is the zero point and stays so."""
    size = weight.shape[1] // start.scales.shape[1]
    zeros = start.zero_points.repeat_interleave(size, 1)
    best, current, least = start, start, row_errors(weight, start.dense(), hessian)
    for _ in range(passes):
        scales = _affine_scales(weight, current, hessian)
        spread = scales.repeat_interleave(size, 1)
        nearest = _on_affine(spread, zeros, bits, mask)
        codes = _descended(weight, decode(current.codes, spread, zeros), current.codes, hessian, nearest)
        current = replace(current, codes=codes, scales=scales)
        errors = row_errors(weight, current.dense(), hessian)
        better = (errors < least).unsqueeze(1)
        if not better.any():
            break
        least = torch.minimum(errors, least)
        codes, scales = torch.where(better, codes, best.codes), torch.where(better, scales, best.scales)
        best = replace(best, codes=codes, scales=scales)
    return best


def refine_palette(weight: torch.Tensor, start: Palette, hessian: torch.Tensor, passes: int) -> Palette:
    """The same for palettes. No error of a group of rows that shares one grows."""
    groups = len(start.palette)
    shared = start.group_size // start.vector
    best, current, least = start, start, row_errors(weight, start.dense(), hessian).reshape(groups, -1).sum(1)
    for _ in range(passes):
        book = Codebook(_entries(weight, current, hessian), start.group_size, start.channel_scales)
        nearest = _on_palette(book, start.mask)
        current = replace(book.coded(current.codes), mask=start.mask)
        current = replace(current, codes=_descended(weight, current.dense(), current.codes, hessian, nearest))
        errors = row_errors(weight, current.dense(), hessian).reshape(groups, -1).sum(1)
        better = errors < least
        if not better.any():
            break
        least = torch.minimum(errors, least)
        palette = torch.where(better.reshape(-1, *[1] * (book.palette.ndim - 1)), book.palette, best.palette)
        codes = torch.where(better.repeat_interleave(shared).unsqueeze(1), current.codes, best.codes)
        best = replace(best, codes=codes, palette=palette)
    return best


def row_errors(weight: torch.Tensor, dense: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Each row's squared error of outputs over the calibration inputs: e H e^T, float64 (out,)."""
    error = weight - dense
    return ((error @ hessian) * error).sum(1, dtype=torch.float64)


def _on_affine(scales: torch.Tensor, zeros: torch.Tensor, bits: int, mask: torch.Tensor | None) -> Nearest:
    def nearest(values: torch.Tensor, column: int) -> tuple[torch.Tensor, torch.Tensor]:
        codes = encode(values, scales[:, column], zeros[:, column], bits)
        if mask is not None:
            codes = torch.where(mask[:, column], codes, zeros[:, column])
        return codes, decode(codes, scales[:, column], zeros[:, column])

    return nearest


def _on_palette(book: Codebook, mask: torch.Tensor | None) -> Nearest:
    def nearest(values: torch.Tensor, column: int) -> tuple[torch.Tensor, torch.Tensor]:
        codes = book.encode(values.unsqueeze(1), slice(column, column + 1))
        found = book.decode(codes)[:, 0]
        return codes[:, 0], found if mask is None else torch.where(mask[:, column], found, 0.0)

    return nearest


def _descended(
    weight: torch.Tensor, dense: torch.Tensor, codes: torch.Tensor, hessian: torch.Tensor, nearest: Nearest
) -> torch.Tensor:
    """The codes after one pass over the columns. dense: what the codes mean before it."""
    codes, error, diagonal = codes.clone(), dense - weight, hessian.diagonal()
    slopes = error @ hessian
    for start in range(0, weight.shape[1], _BLOCK):
        block = hessian[start : start + _BLOCK]
        moved = torch.zeros(len(weight), len(block))
        for inside in range(len(block)):
            column = start + inside
            slope = slopes[:, column] + moved[:, :inside] @ block[:inside, column]
            wanted = weight[:, column] + error[:, column] - slope / diagonal[column]
            codes[:, column], values = nearest(wanted, column)
            moved[:, inside] = values - weight[:, column] - error[:, column]
        slopes += moved @ block
    return codes


def _affine_scales(weight: torch.Tensor, current: Affine, hessian: torch.Tensor) -> torch.Tensor:
    """The scales, float16 (out, groups), that fit the codes best: group after group, the others held."""
    groups = current.scales.shape[1]
    size = weight.shape[1] // groups
    steps = current.codes.float() - current.zero_points.repeat_interleave(size, 1)
    scales = current.scales.float()
    error = steps * scales.repeat_interleave(size, 1) - weight
    for group in range(groups):
        span = slice(group * size, (group + 1) * size)
        part = steps[:, span]
        curvature = ((part @ hessian[span, span]) * part).sum(1)
        slope = ((error @ hessian[:, span]) * part).sum(1)
        moved = (scales[:, group] - slope / curvature).half()
        good = (moved > 0) & torch.isfinite(moved)  # not where all steps are zero
        moved = torch.where(good, moved, scales[:, group].half()).float()
        error[:, span] += (moved - scales[:, group]).unsqueeze(1) * part
        scales[:, group] = moved
    return scales.half()


def _entries(weight: torch.Tensor, current: Palette, hessian: torch.Tensor) -> torch.Tensor:
    """The palettes that fit the codes best, by least squares; an unused entry stays, and the order of entries does."""
    size, vector = current.group_size, current.vector
    found = torch.empty_like(current.palette)
    for group, palette in enumerate(current.palette):
        for place, values in enumerate(palette.reshape(len(palette), vector).T):
            rows = range(group * size + place, (group + 1) * size, vector)
            solved = _solved(weight, current, hessian, rows, values.double()).half()
            whole = torch.isfinite(solved).all() and (vector > 1 or (solved.diff() >= 0).all())
            found[group].reshape(len(palette), vector)[:, place] = solved if whole else values
    return found


def _solved(
    weight: torch.Tensor, current: Palette, hessian: torch.Tensor, rows: range, values: torch.Tensor
) -> torch.Tensor:
    """The normal equations of one palette over the rows that share it, float64 (entries,)."""
    count = len(values)
    normal, right = torch.zeros(count, count), torch.zeros(count)
    for row in rows:
        codes = current.codes[row // current.vector].long()
        scale = 1.0 if current.channel_scales is None else float(current.channel_scales[row])
        kept = slice(None) if current.mask is None else current.mask[row]
        product = torch.zeros(count, len(hessian)).index_add_(0, codes[kept], hessian[kept])
        normal += torch.zeros(count, count).index_add_(1, codes[kept], product[:, kept]) * scale**2
        right += product @ weight[row] * scale
    ridge = _RIDGE * normal.diagonal().double()
    ridge = torch.where(ridge > 0, ridge, 1.0)
    solved: torch.Tensor = torch.linalg.solve(normal.double() + ridge.diag(), right.double() + ridge * values)
    return solved
