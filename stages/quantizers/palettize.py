"""Palettes: each weight is one of 2^bits values, chosen by weighted k-means over groups of rows.

Weighing by the Fisher information follows SqueezeLLM (arXiv:2306.07629). In one dimension clusters are intervals of the
sorted weights. The best partition along a coarse set of edges is found by dynamic programming (Ckmeans.1d.dp, Wang and
Song, The R Journal 2011); Lloyd's steps then refine it, on cumulative sums, so that a step costs 2^bits searches.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from stages.quantizers.results import Palette

_STEPS = 100
_EDGES = 256  # half at equal counts of weights, half at equal distances, so that outliers are resolved too
_CHUNK = 1 << 21  # weights sorted at a time
_VECTOR_STEPS = 30
_POINTS = 1 << 14  # vectors compared with all entries at a time


@dataclass(frozen=True)
class Codebook:
    """Palettes without codes: palette float16 (groups, 2^bits) ascending, or (groups, 2^bits, vector); group_size rows
    share one; channel_scales float16 (out,) or None. weights: float32 (out, in), what errors count (of vectors)."""

    palette: torch.Tensor
    group_size: int
    channel_scales: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    @property
    def vector(self) -> int:
        return self.palette.shape[2] if self.palette.ndim == 3 else 1

    def encode(self, values: torch.Tensor, columns: slice = slice(None)) -> torch.Tensor:
        """The nearest codes, uint8 (out / vector, n), of values float32 (out, n), which stand in `columns`."""
        if self.channel_scales is not None:
            values = values / self.channel_scales.float().unsqueeze(1)
        if self.vector > 1:
            return self._nearest_vectors(values, columns)
        return nearest_codes(values, self._entries)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """float32 (out, n)."""
        if self.vector > 1 or self.channel_scales is not None:
            return self.coded(codes).dense()
        return self._entries.gather(1, codes.long())

    def coded(self, codes: torch.Tensor) -> Palette:
        return Palette(codes, self.palette, self.group_size, self.channel_scales)

    @cached_property
    def _entries(self) -> torch.Tensor:
        """The palette of each row, float32 (out, 2^bits)."""
        return self.palette.float().repeat_interleave(self.group_size, 0)

    def _nearest_vectors(self, values: torch.Tensor, columns: slice) -> torch.Tensor:
        weights = torch.ones_like(values) if self.weights is None else self.weights[:, columns]
        groups, rows = len(self.palette), len(values) // self.vector
        points = vectors(values, self.vector).reshape(groups, -1, self.vector)
        mass = vectors(weights, self.vector).reshape(groups, -1, self.vector)
        codes = torch.cat([nearest_vectors(*each) for each in zip(points, mass, self.palette.float(), strict=True)])
        return codes.reshape(rows, -1).to(torch.uint8)


def palettize(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    importance: torch.Tensor | None = None,
    *,
    channel_scale: bool = False,
    vector: int = 1,
) -> Palette:
    """weight: float32 (out, in); group_size divides out. importance: (out, in) or (in,), not negative; None = equal.
    channel_scale: rows are divided by their root mean square first. vector: rows that an entry stands for."""
    book = codebook(weight, bits, group_size, importance, channel_scale=channel_scale, vector=vector)
    return book.coded(book.encode(weight))


def codebook(
    weight: torch.Tensor,
    bits: int,
    group_size: int,
    importance: torch.Tensor | None,
    *,
    channel_scale: bool = False,
    vector: int = 1,
) -> Codebook:
    """What palettize takes codes from."""
    weights = torch.ones_like(weight) if importance is None else importance.expand(weight.shape)
    if vector > 1:
        groups = len(weight) // group_size
        points, mass = (vectors(each, vector).reshape(groups, -1, vector) for each in (weight, weights))
        parts = [weighted_vector_kmeans(*each, 1 << bits) for each in zip(points, mass, strict=True)]
        return Codebook(torch.stack(parts).to(torch.float16), group_size, None, weights)
    scales = None
    if channel_scale:
        scales = row_scales(weight)
        weight, weights = weight / scales.float().unsqueeze(1), weights * scales.float().square().unsqueeze(1)
    return Codebook(palettes(weight, bits, group_size, weights), group_size, scales)


def row_scales(weight: torch.Tensor) -> torch.Tensor:
    """The root mean square of each row, float16 (out,); 1 for a row that float16 would make zero or infinite."""
    scales = weight.double().square().mean(1).sqrt().to(torch.float16)
    return torch.where((scales > 0) & torch.isfinite(scales), scales, torch.ones_like(scales))


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


def vectors(weight: torch.Tensor, size: int) -> torch.Tensor:
    """(out, in) -> (out / size, in, size): consecutive rows of a column together."""
    return weight.reshape(-1, size, weight.shape[1]).transpose(1, 2)


def nearest_vectors(points: torch.Tensor, mass: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """The nearest of entries (k, v), int64 (n,), to points (n, v) by squared error weighed with mass (n, v)."""
    found = []
    for part, weights in zip(points.split(_POINTS), mass.split(_POINTS), strict=True):
        found.append((weights @ entries.square().T - 2 * (weights * part) @ entries.T).argmin(1))
    return torch.cat(found)


def weighted_vector_kmeans(points: torch.Tensor, mass: torch.Tensor, clusters: int) -> torch.Tensor:
    """Centroids, float32 (clusters, v), of points (n, v) with weights (n, v), by Lloyd's steps.

    No chance is involved: the first centroids are each half of the points split along their widest direction, again and
    again (Linde, Buzo and Gray, IEEE Trans. Communications 1980, by halves); an empty cluster keeps its place.
    """
    centroids = _split_centroids(points, mass, clusters)
    for _ in range(_VECTOR_STEPS):
        codes = nearest_vectors(points, mass, centroids)
        total = torch.zeros(clusters, points.shape[1], dtype=torch.float64)
        moment = total.clone()
        total.index_add_(0, codes, mass.double())
        moment.index_add_(0, codes, (mass * points).double())
        moved = torch.where(total > 0, moment / torch.where(total > 0, total, 1.0), centroids.double()).float()
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _split_centroids(points: torch.Tensor, mass: torch.Tensor, clusters: int) -> torch.Tensor:
    parts = [torch.arange(len(points))]
    while len(parts) < clusters:
        halves = []
        for part in parts:
            spread = points[part].double().var(0, correction=0) if len(part) else torch.zeros(points.shape[1])
            order = part[points[part, int(spread.argmax())].argsort(stable=True)]
            halves += [order[: len(order) // 2], order[len(order) // 2 :]]
        parts = halves
    means = [_mean(points[part], mass[part]) if len(part) else points.mean(0) for part in parts]
    return torch.stack(means).float()


def _mean(points: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    total = mass.double().sum(0)
    return torch.where(
        total > 0, (mass * points).double().sum(0) / torch.where(total > 0, total, 1.0), points.double().mean(0)
    ).float()


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
