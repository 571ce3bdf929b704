"""HQQ (Badri and Shaji 2023, mobiusml.github.io/hqq_blog): affine grids that fit the bulk of the weights, without data.

The lp norm of the error, p < 1, lets outliers err. Half-quadratic splitting gives every weight a slack, which shrinking
finds in closed form; grids are then least squares of what is left. There zero points are real numbers; here they are
integers and scales float16, as they ship, so zero point and scale take turns, and every grid is judged as it ships.
"""

import torch

from stages.quantizers.results import Affine
from stages.quantizers.rtn import affine_grid, decode, encode

NORM = 0.7  # p
_PENALTIES = [10.0 * 1.1**step for step in range(20)]  # of the slack, in units of one over the group's mean magnitude
_STARTS = (1.0,)
_CHUNK = 1 << 18  # weights at a time: what a processor's cache holds


def hqq(weight: torch.Tensor, bits: int, group_size: int, symmetric: bool) -> Affine:
    """weight: float32 (out, in), group_size divides in. In no group is the sum of |error|^0.7 above that of
    round_to_nearest."""
    rows, columns = weight.shape
    result = Affine(
        torch.empty(rows, columns, dtype=torch.uint8),
        torch.empty(rows, columns // group_size, dtype=torch.float16),
        torch.empty(rows, columns // group_size, dtype=torch.uint8),
    )
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        groups = weight[part].reshape(-1, columns // group_size, group_size)
        scales, zero_points = _solved(groups, bits, symmetric)
        codes = encode(groups, scales.unsqueeze(-1), zero_points.unsqueeze(-1), bits)
        result.codes[part], result.scales[part], result.zero_points[part] = codes.flatten(1), scales, zero_points
    return result


def _solved(groups: torch.Tensor, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales float16 and zero points uint8 (...) of groups (..., size): the best of all that were met."""
    best = _Best(groups, bits)
    unit = groups.abs().mean(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scales, zero_points = affine_grid(groups, bits, symmetric, False, None)
    codes, values = best.offer(scales, zero_points)
    for penalty in _PENALTIES:
        target = groups - _shrunk((groups - values) / unit, penalty) * unit
        scales, zero_points = _fitted(target, codes.float(), scales, zero_points, bits, symmetric)
        codes, values = best.offer(scales, zero_points)
    return best.scales, best.zero_points


class _Best:
    """The grids of least lp norm so far."""

    def __init__(self, groups: torch.Tensor, bits: int):
        self.groups, self.bits = groups, bits
        self.norms = torch.full(groups.shape[:-1], torch.inf)
        self.scales = torch.ones(groups.shape[:-1], dtype=torch.float16)
        self.zero_points = torch.zeros(groups.shape[:-1], dtype=torch.uint8)

    def offer(self, scales: torch.Tensor, zero_points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and values of the groups on these grids, which are kept where they are better."""
        grid = scales.unsqueeze(-1), zero_points.unsqueeze(-1)
        codes = encode(self.groups, *grid, self.bits)
        values = decode(codes, *grid)
        norms = (values - self.groups).abs().pow(NORM).sum(-1)
        better = norms < self.norms
        self.norms = torch.where(better, norms, self.norms)
        self.scales = torch.where(better, scales, self.scales)
        self.zero_points = torch.where(better, zero_points, self.zero_points)
        return codes, values


def _shrunk(errors: torch.Tensor, penalty: float) -> torch.Tensor:
    """The slack: errors brought towards 0 by |error|^(p-1) / penalty, the small ones all the way (the generalised
    soft threshold of the lp norm)."""
    sizes = errors.abs()
    shrinking = sizes.clamp(min=1e-8).pow(NORM - 1) / penalty
    return errors.sign() * (sizes - shrinking).clamp(min=0)


def _fitted(
    target: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    bits: int,
    symmetric: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The zero point of least squares for these codes, rounded, then the scale of least squares for that."""
    if not symmetric:
        middle = (codes - target / scales.float().unsqueeze(-1)).mean(-1)
        zero_points = middle.round().clamp(0, (1 << bits) - 1).to(torch.uint8)
    steps = codes - zero_points.unsqueeze(-1).float()
    power = steps.square().sum(-1)
    fitted = ((steps * target).sum(-1) / torch.where(power > 0, power, 1.0)).to(torch.float16)
    usable = (power > 0) & (fitted > 0) & torch.isfinite(fitted)
    return torch.where(usable, fitted, scales), zero_points
