"""Grids that learn: affine scales and palettes as modules between a latent weight and the layer that multiplies by it.

A latent weight is kept in units of its matrix's root mean square, grids in units of their first values, so that one
learning rate suits all layers.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stages.quantizers.palettize import nearest_codes
from stages.quantizers.results import Affine, Float, Palette

Result = Affine | Palette | Float
_INSIDE = 0.499  # of a step: how far from its grid point a weight may be and round to it
_LEAST_SCALE = 2.0**-24  # float16's least positive number


def learned(result: Result, weight: torch.Tensor) -> "LearnedAffine | LearnedPalette | LearnedFloat":
    """The grid that starts as the result; weight: float32 (out, in), what it was quantized from."""
    if isinstance(result, Float):
        return LearnedFloat(result, weight)
    return LearnedPalette(result, weight) if isinstance(result, Palette) else LearnedAffine(result, weight)


def start(result: Result, weight: torch.Tensor) -> torch.Tensor:
    """float32 (out, in): the values nearest to weight that have the result's codes, so that training starts from what
    the method chose and not from rounding to nearest. Of vectors, every weight becomes its entry."""
    if isinstance(result, Float):
        return result.weight
    if isinstance(result, Affine):
        scales, zero_points = result.scales.float().unsqueeze(-1), result.zero_points.float().unsqueeze(-1)
        codes = result.codes.reshape(*result.scales.shape, -1).float() - zero_points
        places = weight.reshape(codes.shape) / scales
        clipped = codes.eq(-zero_points) & (places < codes)  # beyond the grid's ends every value has the last code
        clipped |= codes.eq((1 << _bits(result)) - 1 - zero_points) & (places > codes)
        moved = places.clamp(codes - _INSIDE, codes + _INSIDE)
        return (torch.where(clipped, places, moved) * scales).view(weight.shape)
    if result.vector > 1:
        return replace(result, mask=None).dense()
    rows = torch.arange(len(weight)) // result.group_size
    palette = result.palette.float()
    row_scales = None if result.channel_scales is None else result.channel_scales.float().clamp_min(_LEAST_SCALE)
    if row_scales is not None:
        weight = weight / row_scales.unsqueeze(1)
    middles = nn.functional.pad((palette[:, 1:] + palette[:, :-1]) / 2, (1, 1))
    middles[:, 0], middles[:, -1] = -torch.inf, torch.inf
    low, high = (middles[rows.unsqueeze(1), result.codes.long() + end] for end in (0, 1))
    entry = palette[rows.unsqueeze(1), result.codes.long()]
    low, high = (torch.where(edge.isinf(), edge, entry + (edge - entry) * 2 * _INSIDE) for edge in (low, high))
    moved = weight.clamp(low, high)
    return moved if row_scales is None else moved * row_scales.unsqueeze(1)


class LearnedAffine(nn.Module):
    """scale * (code - zero point) with a learned scale for each group; zero points stay."""

    def __init__(self, result: Affine, weight: torch.Tensor):
        super().__init__()
        self.unit, self.bits = _unit(weight), _bits(result)
        self.first: torch.Tensor
        self.zero_points: torch.Tensor
        self.mask: torch.Tensor | None
        self.register_buffer("first", result.scales.float(), persistent=False)
        self.register_buffer("zero_points", result.zero_points.float(), persistent=False)
        self.register_buffer("mask", result.mask, persistent=False)
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
        values = (scales * (codes - zero_points)).flatten(1)
        return _masked(values, self.mask).view(latent.shape)

    def result(self, latent: torch.Tensor) -> Affine:
        scales = self._scales().half()
        places = self._grouped(latent) / scales.float().unsqueeze(-1) + self.zero_points.unsqueeze(-1)
        codes = places.clamp(0, (1 << self.bits) - 1).round().to(torch.uint8).flatten(1)
        mask = None if self.mask is None else self.mask.cpu()
        return Affine(codes.cpu(), scales.cpu(), self.zero_points.to(torch.uint8).cpu(), mask)

    def _scales(self) -> torch.Tensor:
        return (self.first * self.factor).clamp_min(_LEAST_SCALE)

    def _grouped(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent * self.unit).reshape(*self.first.shape, -1)


class LearnedPalette(nn.Module):
    """The nearest of 2^bits learned entries, for each group of rows; entries may be vectors, rows may have scales."""

    def __init__(self, result: Palette, weight: torch.Tensor):
        super().__init__()
        palette = result.palette.float().reshape(*result.palette.shape[:2], result.vector)
        self.unit, self.entry_unit = _unit(weight), _unit(palette)
        self.group_size, self.vector = result.group_size, result.vector
        self.entries = nn.Parameter(palette / self.entry_unit)
        self.first: torch.Tensor | None
        self.mask: torch.Tensor | None
        self.register_buffer("first", _floats(result.channel_scales), persistent=False)
        self.register_buffer("mask", result.mask, persistent=False)
        self.factor = nn.Parameter(torch.ones_like(self.first)) if self.first is not None else None

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.unit

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        rows = latent.flatten(1) * self.unit
        scales = self._scales()
        scaled = rows if scales is None else rows / scales
        values: torch.Tensor = _Nearest.apply(self._points(scaled), _half(self._ordered()))
        values = self._rows(values, rows.shape)
        if scales is not None:
            values = values * scales
        return _masked(values, self.mask).view(latent.shape)

    def result(self, latent: torch.Tensor) -> Palette:
        palette, scales = self._ordered().half(), self._scales()
        rows = latent.flatten(1) * self.unit
        points = self._points(rows if scales is None else rows / scales)
        codes = _nearest(points, palette.float()).view(len(rows) // self.vector, -1)
        return Palette(
            codes.cpu(),
            (palette if self.vector > 1 else palette.squeeze(2)).cpu(),
            self.group_size,
            None if scales is None else scales.squeeze(1).half().cpu(),
            None if self.mask is None else self.mask.cpu(),
        )

    def _ordered(self) -> torch.Tensor:
        """(groups, entries, vector); numbers ascend."""
        entries = self.entries * self.entry_unit
        return entries if self.vector > 1 else entries.sort(dim=1).values

    def _scales(self) -> torch.Tensor | None:
        """(out, 1), rounded to float16."""
        if self.first is None or self.factor is None:
            return None
        return _half((self.first * self.factor).clamp_min(_LEAST_SCALE)).unsqueeze(1)

    def _points(self, rows: torch.Tensor) -> torch.Tensor:
        """(out, in) -> (groups, rows of codes * in, vector)."""
        columns = rows.shape[1]
        return rows.view(-1, self.vector, columns).transpose(1, 2).reshape(len(self.entries), -1, self.vector)

    def _rows(self, points: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        return points.reshape(-1, shape[1], self.vector).transpose(1, 2).reshape(shape)


class LearnedFloat(nn.Module):
    """A weight that stays float16, and zero where its mask says so."""

    def __init__(self, result: Float, weight: torch.Tensor):
        super().__init__()
        self.unit = _unit(weight)
        self.mask: torch.Tensor | None
        self.register_buffer("mask", result.mask, persistent=False)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.unit

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return _masked(_half(latent.flatten(1) * self.unit), self.mask).view(latent.shape)

    def result(self, latent: torch.Tensor) -> Float:
        return Float((latent.flatten(1) * self.unit).cpu(), None if self.mask is None else self.mask.cpu())


class _Nearest(torch.autograd.Function):
    """points (groups, n, vector) -> the nearest entries of palettes (groups, entries, vector).

    Gradients pass to the points, but for numbers that lie beyond the outer entries by more than half a step; each entry
    gets the sum of its points' gradients.
    """

    @staticmethod
    def forward(context: Any, points: torch.Tensor, palettes: torch.Tensor) -> torch.Tensor:
        codes = _nearest(points, palettes)
        inside = torch.ones(())
        if palettes.shape[2] == 1:
            low, high = palettes[:, :1], palettes[:, -1:]
            margin = (high - low) / (palettes.shape[1] - 1) * 0.5
            inside = (points >= low - margin) & (points <= high + margin)
        context.save_for_backward(codes, inside)
        context.entries = palettes.shape[1]
        return palettes.gather(1, codes.long().unsqueeze(2).expand(points.shape))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, inside = context.saved_tensors
        groups, _, vector = gradient.shape
        if context.entries <= 16:
            used = [(codes == code).unsqueeze(2) for code in range(context.entries)]
            sums = torch.stack([(gradient * each).sum(1) for each in used], dim=1)
        else:
            sums = gradient.new_zeros(groups, context.entries, vector)
            sums.scatter_add_(1, codes.long().unsqueeze(2).expand(gradient.shape), gradient)
        return gradient * inside, sums


def _nearest(points: torch.Tensor, palettes: torch.Tensor) -> torch.Tensor:
    """The nearest entries' codes, uint8 (groups, n)."""
    if palettes.shape[2] == 1:
        return nearest_codes(points.squeeze(2), palettes.squeeze(2))
    distances = palettes.square().sum(2).unsqueeze(1) - 2 * points @ palettes.transpose(1, 2)
    return distances.argmin(2).to(torch.uint8)


Grid = LearnedAffine | LearnedPalette | LearnedFloat


def _unit(weight: torch.Tensor) -> float:
    """The root mean square, or 1 for a matrix of zeros."""
    return float(weight.double().square().mean().sqrt()) or 1.0


def _bits(result: Affine) -> int:
    """As many as codes and zero points need: no more than the format has."""
    return max(int(result.codes.max()), int(result.zero_points.max()), 1).bit_length()


def _floats(values: torch.Tensor | None) -> torch.Tensor | None:
    return None if values is None else values.float()


def _masked(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return values if mask is None else torch.where(mask, values, 0.0)


def _half(values: torch.Tensor) -> torch.Tensor:
    """Rounded to float16; gradients pass straight through."""
    return values + (values.half().float() - values).detach()
