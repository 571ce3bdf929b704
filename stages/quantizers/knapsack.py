"""The multiple-choice knapsack: one option of each item, the least cost in all, within so many bytes.

Dynamic programming over bytes (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11), in units that
divide all sizes. Where that would be more than 2^18 units, sizes are rounded up to fewer, so that the bound holds, and
what the rounding left is spent by single exchanges.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_UNITS = 1 << 18
Option = tuple[int, float]  # bytes, cost


def solve(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """The index of each item's option; None where even the smallest take more than `budget` bytes.

    Of equal costs the first option counts. Exact where the sizes fit the units.
    """
    least = [min(size for size, _ in options) for options in items]
    rest = budget - sum(least)
    if rest < 0:
        return None
    spare = sum(max(size for size, _ in options) for options in items) - sum(least)
    extra = [[size - low for size, _ in options] for options, low in zip(items, least, strict=True)]
    unit = math.gcd(*(size for sizes in extra for size in sizes)) or 1
    rest = min(rest, spare)
    unit *= -(-rest // unit // _UNITS) or 1
    chosen = _best([[-(-size // unit) for size in sizes] for sizes in extra], items, rest // unit)
    return _improved(items, chosen, budget)


def _best(units: list[list[int]], items: Sequence[Sequence[Option]], capacity: int) -> list[int]:
    best: NDArray[np.float64] = np.zeros(capacity + 1)
    taken: list[NDArray[np.int16]] = []
    for sizes, options in zip(units, items, strict=True):
        after = np.full(capacity + 1, np.inf)
        index = np.zeros(capacity + 1, np.int16)
        for place, (size, (_, cost)) in enumerate(zip(sizes, options, strict=True)):
            if size > capacity:
                continue
            total = best[: capacity + 1 - size] + cost
            better = total < after[size:]
            np.copyto(after[size:], total, where=better)
            index[size:][better] = place
        best = after
        taken.append(index)
    chosen, left = [], capacity
    for index, sizes in zip(reversed(taken), reversed(units), strict=True):
        chosen.append(int(index[left]))
        left -= sizes[chosen[-1]]
    return chosen[::-1]


def _improved(items: Sequence[Sequence[Option]], chosen: list[int], budget: int) -> list[int]:
    """Exchanges of single options while one saves cost and fits; the one that saves most first."""
    chosen = list(chosen)
    while True:
        left = budget - sum(options[index][0] for options, index in zip(items, chosen, strict=True))
        saved, item, better = 0.0, -1, -1
        for place, options in enumerate(items):
            size, cost = options[chosen[place]]
            for index, (other, lower) in enumerate(options):
                if other - size <= left and cost - lower > saved:
                    saved, item, better = cost - lower, place, index
        if item < 0:
            return chosen
        chosen[item] = better
