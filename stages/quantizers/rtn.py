"""Round to nearest onto an affine grid: one scale, and one zero point, for each group of columns of a row.

Scales are rounded to float16 before any code is chosen, so that the codes suit the scale that is shipped.
"""

import torch

from stages.quantizers.results import Affine

_CHUNK = 1 << 18  # weights rounded at a time: what a processor's cache holds
# Shares of the full range that a search tries; below a third a 4-bit grid clips more than it gains.
_SHARES = [round(0.35 + 0.025 * step, 3) for step in range(27)]


def round_to_nearest(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    *,
    search: bool = False,
    importance: torch.Tensor | None = None,
) -> Affine:
    """weight: float32 (out, in), group_size divides in. `search`: scales by least squared error, weighed by
    importance (in,), instead of the full range. Without search no error exceeds half a scale.
    """
    rows, columns = weight.shape
    weights = None if importance is None else importance.reshape(-1, group_size)
    result = Affine(
        torch.empty(rows, columns, dtype=torch.uint8),
        torch.empty(rows, columns // group_size, dtype=torch.float16),
        torch.empty(rows, columns // group_size, dtype=torch.uint8),
    )
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):  # rows do not depend on each other, and an embedding has millions of groups
        part = slice(start, start + step)
        groups = weight[part].reshape(-1, columns // group_size, group_size)
        scales, zero_points = affine_grid(groups, bits, symmetric, search, weights)
        codes = encode(groups, scales.unsqueeze(-1), zero_points.unsqueeze(-1), bits)
        result.codes[part], result.scales[part], result.zero_points[part] = codes.flatten(1), scales, zero_points
    return result


def affine_grid(
    groups: torch.Tensor, bits: int, symmetric: bool, search: bool, importance: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The grids of groups (..., size) float32: scales float16 (...) and zero points uint8 (...).

    importance broadcasts to groups. A group of zeros gets scale 1 and codes at the zero point.
    """
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales, zero_points = _grid(low, high, bits, symmetric)
    if not search:
        return scales, zero_points
    least = _error(groups, scales, zero_points, bits, importance)
    for share in _SHARES[:-1]:
        candidate, zeros = _grid(low * share, high * share, bits, symmetric)
        error = _error(groups, candidate, zeros, bits, importance)
        better = error < least
        least = torch.where(better, error, least)
        scales, zero_points = torch.where(better, candidate, scales), torch.where(better, zeros, zero_points)
    return scales, zero_points


def encode(values: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest codes, uint8, of values float32 on the grids; scales and zero points broadcast to values."""
    return (values / scales.float()).add_(zero_points).round_().clamp_(0, (1 << bits) - 1).to(torch.uint8)


def decode(codes: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor) -> torch.Tensor:
    """float32 scale * (code - zero point)."""
    return scales.float() * (codes.float() - zero_points.float())


def _grid(low: torch.Tensor, high: torch.Tensor, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The finest grid over [low, high] <> 0; symmetric: with the zero point in the middle code."""
    steps, middle = (1 << bits) - 1, 1 << (bits - 1)
    wanted = torch.maximum(high / max(steps - middle, 1), -low / middle) if symmetric else (high - low) / steps
    scales = _rounded_up(wanted)
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    if symmetric:
        return scales, torch.full_like(scales, middle, dtype=torch.uint8)
    return scales, (-low / scales.float()).round().clamp(0, steps).to(torch.uint8)


def _rounded_up(values: torch.Tensor) -> torch.Tensor:
    """The least float16 not below values (>= 0), so that the grid never falls short of the range."""
    nearest = values.to(torch.float16)
    short = nearest.float() < values
    return torch.where(short, (nearest.view(torch.int16) + 1).view(torch.float16), nearest)


def _error(
    groups: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    bits: int,
    importance: torch.Tensor | None,
) -> torch.Tensor:
    scales, zero_points = scales.unsqueeze(-1), zero_points.unsqueeze(-1)
    errors = (decode(encode(groups, scales, zero_points, bits), scales, zero_points) - groups).square_()
    return (errors if importance is None else errors * importance).sum(-1)
