"""The hypervolume of a set of points (doi:10.1109/4235.797969): how much of a box they dominate."""

from collections.abc import Iterable, Sequence

Point = tuple[float, float, float]  # each the less the better
CORNER: Point = (1.0, 1.0, 1.0)  # nothing answered right, at the full model's bytes and latency


def hypervolume(points: Iterable[Point], corner: Point = CORNER) -> float:
    """The volume between the points and `corner`; points beyond it count nothing. Exact, in O(n^2 log n)."""
    inside = sorted((each for each in points if all(a < b for a, b in zip(each, corner, strict=True))), key=_third)
    total, seen = 0.0, list[Point]()
    for index, each in enumerate(inside):
        seen.append(each)
        until = inside[index + 1][2] if index + 1 < len(inside) else corner[2]
        if until > each[2]:
            total += _area(seen, corner) * (until - each[2])
    return total


def _third(point: Point) -> float:
    return point[2]


def _area(points: Sequence[Point], corner: Point) -> float:
    """Of the first two coordinates."""
    total, height = 0.0, corner[1]
    for first, second, _ in sorted(points):
        if second < height:
            total += (corner[0] - first) * (height - second)
            height = second
    return total


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings of the same things: 1, the same; -1, reversed; ties in either count for neither.
    NaN where one of them has only ties."""
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic)
