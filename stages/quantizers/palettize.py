"""Palettes: each weight is one of 2^bits values, chosen by weighted k-means over groups of rows.

Weighing by the Fisher information follows SqueezeLLM (arXiv:2306.07629). In one dimension clusters are intervals of the
sorted weights. The best partition along a coarse set of edges is found by dynamic programming (Ckmeans.1d.dp, Wang and
Song, The R Journal 2011); Lloyd's steps then refine it, on cumulative sums, so that a step costs 2^bits searches.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stages.quantizers.store import dequantize_palette

_STEPS = 100
_EDGES = 256  # half at equal counts of weights, half at equal distances, so that outliers are resolved too
_CHUNK = 1 << 21  # weights sorted at a time


@dataclass(frozen=True)
class Palette:
    """A weight as codes uint8 (out, in) into palette float16 (groups, 2^bits), ascending; group_size rows share one."""

    codes: torch.Tensor
    palette: torch.Tensor
    group_size: int

    def dense(self) -> torch.Tensor:
        """float32 (out, in), exactly what the store gives."""
        return torch.from_numpy(dequantize_palette(self.codes.numpy(), self.palette.numpy(), self.group_size))

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        return self.codes.numpy(), self.palette.numpy()


def palettize(weight: torch.Tensor, bits: int, group_size: int, importance: torch.Tensor | None = None) -> Palette:
    """weight: float32 (out, in); group_size divides out. importance: (out, in) or (in,), not negative; None = equal."""
    palette = palettes(weight, bits, group_size, importance)
    codes = nearest_codes(weight, palette.float().repeat_interleave(group_size, 0))
    return Palette(codes, palette, group_size)


def palettes(weight: torch.Tensor, bits: int, group_size: int, importance: torch.Tensor | None) -> torch.Tensor:
    """The palettes alone: float16 (out / group_size, 2^bits), each ascending."""
    rows, columns = weight.shape
    groups = weight.reshape(rows // group_size, -1)
    weights = torch.ones_like(weight) if importance is None else importance.expand(rows, columns)
    weights = weights.reshape(groups.shape)
    at_once = max(1, _CHUNK // groups.shape[1])
    parts = [
        weighted_kmeans(groups[start : start + at_once], weights[start : start + at_once], 1 << bits)
        for start in range(0, len(groups), at_once)
    ]
    return torch.cat(parts).to(torch.float16)


def nearest_codes(values: torch.Tensor, palette: torch.Tensor) -> torch.Tensor:
    """The nearest entries, uint8 (rows, n), of values (rows, n) in palettes float32 (rows, entries), ascending."""
    middles = ((palette[:, 1:] + palette[:, :-1]) / 2).contiguous()
    return torch.searchsorted(middles, values.contiguous()).to(torch.uint8)


def weighted_kmeans(values: torch.Tensor, weights: torch.Tensor, clusters: int) -> torch.Tensor:
    """Centroids, float64 (groups, clusters) ascending, of values (groups, n) with weights (groups, n), not negative.

    No chance is involved, and sums run in float64.
    """
    ordered, order = values.double().sort(dim=1, stable=True)
    mass = weights.double().gather(1, order)
    sums = _Sums(ordered, mass)
    centroids = _best_partition(ordered, sums, clusters)
    for _ in range(_STEPS):
        middles = ((centroids[:, 1:] + centroids[:, :-1]) / 2).contiguous()
        ends = torch.nn.functional.pad(torch.searchsorted(ordered, middles), (1, 1))
        ends[:, -1] = ordered.shape[1]
        moved = sums.means(ends, centroids).sort(dim=1).values
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


class _Sums:
    """Weighted sums over any interval of the sorted values, from cumulative ones."""

    def __init__(self, ordered: torch.Tensor, mass: torch.Tensor):
        self.mass = torch.nn.functional.pad(mass.cumsum(1), (1, 0))
        self.moment = torch.nn.functional.pad((mass * ordered).cumsum(1), (1, 0))

    def means(self, ends: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        """Means of the intervals between ends (groups, n + 1); `otherwise` (groups, n) where one is empty."""
        mass, moment = self.mass.gather(1, ends).diff(dim=1), self.moment.gather(1, ends).diff(dim=1)
        full = mass > 0
        return torch.where(full, moment / torch.where(full, mass, 1.0), otherwise)


def _best_partition(ordered: torch.Tensor, sums: _Sums, clusters: int) -> torch.Tensor:
    """The centroids of the best partition into intervals that end at the edges."""
    edges = _edges(ordered)
    mass, moment = sums.mass.gather(1, edges), sums.moment.gather(1, edges)
    mass, moment = mass.unsqueeze(1) - mass.unsqueeze(2), moment.unsqueeze(1) - moment.unsqueeze(2)
    # gain[g, i, j]: how much of the sum of squares one cluster from edge i to edge j explains
    gain = torch.where(mass > 0, moment.square() / torch.where(mass > 0, mass, 1.0), 0.0)
    gain = gain.masked_fill(torch.ones(gain.shape[1:]).tril(-1).bool(), -torch.inf)
    best, origins = gain[:, 0], []
    for _ in range(clusters - 1):
        best, origin = (best.unsqueeze(2) + gain).max(dim=1)
        origins.append(origin)
    last = torch.full((len(ordered), 1), edges.shape[1] - 1)
    ends = [last]
    for origin in reversed(origins):
        last = origin.gather(1, last)
        ends.append(last)
    ends.append(torch.zeros_like(last))
    chosen = edges.gather(1, torch.cat(ends[::-1], dim=1))
    return sums.means(chosen, ordered.gather(1, chosen[:, :-1].clamp(max=ordered.shape[1] - 1))).sort(dim=1).values


def _edges(ordered: torch.Tensor) -> torch.Tensor:
    """Indices (groups, edges), ascending, from 0 to n."""
    groups, count = ordered.shape
    if count <= _EDGES:
        return torch.arange(count + 1).expand(groups, -1)
    shares = torch.linspace(0, 1, _EDGES // 2, dtype=torch.float64)
    by_count = (shares * count).round().long().expand(groups, -1)
    distances = ordered[:, :1] + (ordered[:, -1:] - ordered[:, :1]) * shares[1:-1]
    return torch.cat([by_count, torch.searchsorted(ordered, distances)], dim=1).sort(dim=1).values
