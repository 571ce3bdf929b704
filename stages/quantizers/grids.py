"""Grids that learn: affine scales and palettes as modules between a latent weight and the layer that multiplies by it.

A latent weight is kept in units of its matrix's root mean square, grids in units of their first values, so that one
learning rate suits all layers.
"""

from typing import Any

import torch
from torch import nn

from stages.quantizers.palettize import nearest_codes
from stages.quantizers.results import Affine, Palette

Results = dict[str, Affine | Palette]
_LEAST_SCALE = 2.0**-14  # float16's least normal number


def learned(result: Affine | Palette, weight: torch.Tensor) -> "LearnedAffine | LearnedPalette":
    """The grid that starts as the result; weight: float32 (out, in), what it was quantized from."""
    return LearnedPalette(result, weight) if isinstance(result, Palette) else LearnedAffine(result, weight)


class LearnedAffine(nn.Module):
    """scale * (code - zero point) with a learned scale for each group; zero points stay."""

    def __init__(self, result: Affine, weight: torch.Tensor):
        super().__init__()
        self.unit, self.bits = _unit(weight), _bits(result)
        self.first: torch.Tensor
        self.zero_points: torch.Tensor
        self.register_buffer("first", result.scales.float(), persistent=False)
        self.register_buffer("zero_points", result.zero_points.float(), persistent=False)
        self.factor = nn.Parameter(torch.ones_like(self.first))

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.unit

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        groups = self._grouped(latent)
        scales = _half(self._scales()).unsqueeze(-1)
        zero_points = self.zero_points.unsqueeze(-1)
        places = groups / scales + zero_points
        codes = places.clamp(0, (1 << self.bits) - 1)
        codes = codes + (codes.round() - codes).detach()
        return (scales * (codes - zero_points)).view(latent.shape)

    def result(self, latent: torch.Tensor) -> Affine:
        scales = self._scales().half()
        places = self._grouped(latent) / scales.float().unsqueeze(-1) + self.zero_points.unsqueeze(-1)
        codes = places.clamp(0, (1 << self.bits) - 1).round().to(torch.uint8).flatten(1)
        return Affine(codes.cpu(), scales.cpu(), self.zero_points.to(torch.uint8).cpu())

    def _scales(self) -> torch.Tensor:
        return (self.first * self.factor).clamp_min(_LEAST_SCALE)

    def _grouped(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent * self.unit).reshape(*self.first.shape, -1)


class LearnedPalette(nn.Module):
    """The nearest of 2^bits learned values, for each group of rows."""

    def __init__(self, result: Palette, weight: torch.Tensor):
        super().__init__()
        self.unit, self.group_size = _unit(weight), result.group_size
        self.entries = nn.Parameter(result.palette.float() / self.unit)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.unit

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        groups = (latent * self.unit).reshape(len(self.entries), -1)
        values: torch.Tensor = _Nearest.apply(groups, _half(self._ordered()))
        return values.view(latent.shape)

    def result(self, latent: torch.Tensor) -> Palette:
        palette = self._ordered().half()
        groups = (latent * self.unit).reshape(len(palette), -1)
        codes = nearest_codes(groups, palette.float()).view(len(latent), -1)
        return Palette(codes.cpu(), palette.cpu(), self.group_size)

    def _ordered(self) -> torch.Tensor:
        return (self.entries * self.unit).sort(dim=1).values


class _Nearest(torch.autograd.Function):
    """values (groups, n) -> the nearest entries of palettes (groups, entries), ascending.

    Gradients pass to the values but for those that lie beyond the outer entries by more than half a step; each entry
    gets the mean of its weights' gradients, times the square root of their number.
    """

    @staticmethod
    def forward(context: Any, values: torch.Tensor, palettes: torch.Tensor) -> torch.Tensor:
        codes = nearest_codes(values, palettes)
        low, high = palettes[:, :1], palettes[:, -1:]
        margin = (high - low) / (palettes.shape[1] - 1) * 0.5
        context.save_for_backward(codes, (values >= low - margin) & (values <= high + margin))
        context.entries = palettes.shape[1]
        return palettes.gather(1, codes.long())

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, inside = context.saved_tensors
        sums = [(gradient * (codes == code)).sum(1) for code in range(context.entries)]
        return gradient * inside, torch.stack(sums, dim=1)


def _unit(weight: torch.Tensor) -> float:
    """The root mean square, or 1 for a matrix of zeros."""
    return float(weight.double().square().mean().sqrt()) or 1.0


def _bits(result: Affine) -> int:
    return max(int(result.codes.max()), 1).bit_length()


def _half(values: torch.Tensor) -> torch.Tensor:
    """Rounded to float16; gradients pass straight through."""
    return values + (values.half().float() - values).detach()
