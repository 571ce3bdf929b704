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
    the method chose and not from rounding to nearest. A vector that is nearest to another entry becomes its own."""
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
        nearest = LearnedPalette(result, weight)
        with torch.no_grad():
            same = nearest.result(nearest.right_inverse(weight)).codes == result.codes
        return torch.where(same.repeat_interleave(result.vector, 0), weight, replace(result, mask=None).dense())
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
    """The nearest of 2^bits learned entries, for each group of rows; entries may be vectors, rows may have scales.

    entries: (vector, groups, 2^bits), in units of the first ones' root mean square.
    """

    def __init__(self, result: Palette, weight: torch.Tensor):
        super().__init__()
        palette = result.palette.float().reshape(*result.palette.shape[:2], result.vector).permute(2, 0, 1)
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
        rows, scales = latent.flatten(1) * self.unit, self._scales()
        points = self._points(rows if scales is None else rows / scales)
        found: torch.Tensor = _Nearest.apply(points, _half(self._ordered()))
        values = found.view(self.vector, -1, rows.shape[1]).transpose(0, 1).reshape(rows.shape)
        if scales is not None:
            values = values * scales
        return _masked(values, self.mask).view(latent.shape)

    def result(self, latent: torch.Tensor) -> Palette:
        palette, scales = self._ordered().half(), self._scales()
        rows = latent.flatten(1) * self.unit
        codes = _nearest(self._points(rows if scales is None else rows / scales), palette.float())
        palette = palette.permute(1, 2, 0) if self.vector > 1 else palette[0]
        return Palette(
            codes.view(len(rows) // self.vector, -1).cpu(),
            palette.contiguous().cpu(),
            self.group_size,
            None if scales is None else scales.squeeze(1).half().cpu(),
            None if self.mask is None else self.mask.cpu(),
        )

    def _ordered(self) -> torch.Tensor:
        """The entries in the weight's own units; numbers ascend."""
        entries = self.entries * self.entry_unit
        return entries if self.vector > 1 else entries.sort(dim=2).values

    def _scales(self) -> torch.Tensor | None:
        """(out, 1), rounded to float16."""
        if self.first is None or self.factor is None:
            return None
        return _half((self.first * self.factor).clamp_min(_LEAST_SCALE)).unsqueeze(1)

    def _points(self, rows: torch.Tensor) -> torch.Tensor:
        """(out, in) -> (vector, groups, codes of a group)."""
        parts = rows.view(-1, self.vector, rows.shape[1]).transpose(0, 1)
        return parts.reshape(self.vector, self.entries.shape[1], -1)


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
    """points (vector, groups, n) -> the nearest entries of palettes (vector, groups, entries).

    Gradients pass to the points, but for numbers that lie beyond the outer entries by more than half a step; each entry
    gets the sum of its points' gradients.
    """

    @staticmethod
    def forward(context: Any, points: torch.Tensor, palettes: torch.Tensor) -> torch.Tensor:
        codes, inside = _nearest(points, palettes), torch.ones(())
        if len(palettes) == 1:
            low, high = palettes[:, :, :1], palettes[:, :, -1:]
            margin = (high - low) / (palettes.shape[2] - 1) * 0.5
            inside = (points >= low - margin) & (points <= high + margin)
        context.save_for_backward(codes, inside)
        context.shape = palettes.shape
        return palettes.gather(2, codes.long().expand(points.shape))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, inside = context.saved_tensors
        _, groups, entries = context.shape
        places = (codes + torch.arange(groups, device=codes.device).unsqueeze(1) * entries).flatten()
        sums = [places.bincount(part.flatten().double(), minlength=groups * entries) for part in gradient]
        return gradient * inside, torch.stack(sums).view(context.shape).to(gradient.dtype)


def _nearest(points: torch.Tensor, palettes: torch.Tensor) -> torch.Tensor:
    """The nearest entries' codes, uint8 (groups, n)."""
    if len(palettes) == 1:
        return nearest_codes(points[0], palettes[0])
    lengths = palettes.square().sum(0)
    codes = torch.zeros(points.shape[1:], dtype=torch.uint8, device=points.device)
    least = torch.full_like(points[0], torch.inf)
    for code in range(palettes.shape[2]):
        distances = lengths[:, code : code + 1]
        for part, entries in zip(points, palettes, strict=True):
            distances = torch.addcmul(distances, part, entries[:, code : code + 1], value=-2)
        codes.masked_fill_(distances < least, code)
        least = torch.minimum(least, distances)
    return codes


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
