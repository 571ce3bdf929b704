"""Tests that may be looked at after every answer: their errors stay below alpha however often, and whenever one stops.

Outcomes of right or wrong: for each arm, and each rate p that it may have, the Beta mixture's likelihood ratio

    M(p) = B(w p + s, w (1 - p) + f) / (B(w p, w (1 - p)) p^s (1 - p)^f)        s right, f wrong

is a martingale with mean 1 if p is the rate, so that it ever exceeds 1 / alpha with probability alpha at most (Ville;
Robbins, "Statistical methods related to the law of the iterated logarithm", 1970; Howard, Ramdas, McAuliffe, Sekhon,
"Time-uniform, nonparametric, nonasymptotic confidence sequences", 2021, proposition 7). So is the product for both
arms, in whatever order their answers come. The interval holds the differences of all pairs of rates whose product is
below 1 / alpha. It is valid at any size, and at 10,000 answers an arm 18 % wider than the asymptotic one.

Other scores, and several answers of one installation: the normal mixture's asymptotic confidence sequence
(Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences",
2024, theorem 2.2), for the difference of means with its estimated variance. It follows the scores' own spread. A bound
that holds at any size for scores between 0 and 1 (Hoeffding's, in M above) takes them for right or wrong: of scores
with a standard deviation of 0.1 around 0.8 it would ask sixteen times as many. The price: valid in the limit, so that
it begins only where each arm has its minimum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import betaln

WEIGHT = 250.0  # w: the interval is relatively tightest at about eight times as many answers of an arm
TIGHTEST = 4000  # answers of both arms, at which the asymptotic interval is
HALVINGS = 30  # of the search for an interval's end
POINTS, ROUNDS = 48, 4  # of the search for the pair of rates that fits best: rates, each time closer together
Pair = tuple[int, int]


def rate_difference(n: Pair, right: Pair, alpha: float) -> tuple[float, float]:
    """Return the interval of the second arm's rate less the first's. n, right: of both arms, n above 0."""
    middle = right[1] / n[1] - right[0] / n[0]

    def end(far: float) -> float:
        near, out = middle, far
        for _ in range(HALVINGS):
            half = (near + out) / 2
            if least_evidence(half, n, right) > math.log(1 / alpha):
                out = half
            else:
                near = half
        return out

    return end(-1.0), end(1.0)


def least_evidence(difference: float, n: tuple[Any, Any], right: tuple[Any, Any]) -> Any:
    """Return the log of the evidence against that difference of rates: of the pair of rates that has the least.

    n, right: of both arms, whole numbers or arrays of one shape.
    """
    counts = [np.asarray(each, np.float64)[..., None] for each in (*n, *right)]
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
    middle, reach = np.full(counts[0].shape, (low + high) / 2), (high - low) / 2
    least = np.inf
    for _ in range(ROUNDS):
        first = np.clip(middle + np.linspace(-reach, reach, POINTS), low, high)
        found = log_evidence(first, counts[0], counts[2]) + log_evidence(first + difference, counts[1], counts[3])
        best = found.argmin(axis=-1)[..., None]
        middle = np.take_along_axis(first, best, -1)
        least = np.minimum(least, np.take_along_axis(found, best, -1)[..., 0])
        reach *= 2 / (POINTS - 1)
    return least


def log_evidence(rate: Any, n: Any, right: Any) -> Any:
    """Return log M at a rate, which is held off 0 and 1."""
    rate = np.clip(rate, 1e-12, 1 - 1e-12)
    a, b = WEIGHT * rate, WEIGHT * (1 - rate)
    return betaln(a + right, b + n - right) - betaln(a, b) - right * np.log(rate) - (n - right) * np.log1p(-rate)


def mean_radius(variance: Any, units: Any, alpha: float) -> Any:
    """Return half the width of the asymptotic interval. variance: of the difference of means as it is estimated now;
    units: independent ones in both arms. Numbers or arrays."""
    strict = -2 * math.log(alpha)
    scale = units * (strict + math.log(strict + 1)) / TIGHTEST  # t rho^2 in the paper's words
    return np.sqrt(2 * variance * (scale + 1) / scale * (0.5 * np.log(scale + 1) + math.log(1 / alpha)))


def share_evidence(found: tuple[Any, Any], share: float) -> Any:
    """Return the log of the evidence that units are not shared out as they should be: it ever exceeds log(1 / alpha)
    with probability alpha at most if they are. share: the second arm's, of both.

    The same mixture (Lindon, Malek, "Anytime-valid inference for multinomial count data", 2022).
    """
    return log_evidence(share, found[0] + found[1], found[1])
