"""Retention of accuracy with its confidence interval, by the paired bootstrap (Efron, Tibshirani 1993, ch. 13)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 20  # questions that are drawn at a time


@dataclass(frozen=True)
class Retention:
    """The artifact's mean score divided by the reference's, with the bounds of its interval."""

    value: float
    low: float
    high: float


def retention(
    artifact: NDArray[np.float64], reference: NDArray[np.float64], *, resamples: int, confidence: float, seed: int
) -> Retention:
    """artifact and reference: (N,) scores of the same questions, in the same order. Questions are drawn with
    replacement, both scores of each together; the bounds are percentiles of the ratio of means.

    A reference that scores 0 has nothing to retain: the ratio is then 0, so that no gate passes on it.
    """
    if artifact.shape != reference.shape or artifact.ndim != 1 or not len(artifact):
        raise ValueError(f"paired scores must have one equal, non-empty shape, not {artifact.shape}, {reference.shape}")
    random, step = np.random.RandomState(seed), max(1, _BLOCK // len(artifact))
    ratios = np.concatenate(
        [_drawn(random, artifact, reference, min(step, resamples - start)) for start in range(0, resamples, step)]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Retention(float(_ratio(artifact.mean(), reference.mean())), float(low), float(high))


def _drawn(
    random: np.random.RandomState, artifact: NDArray[np.float64], reference: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """The ratios of `count` resamples. The generator's numbers are the same however many are drawn at a time."""
    drawn = random.randint(0, len(artifact), size=(count, len(artifact)))
    return _ratio(artifact[drawn].mean(axis=1), reference[drawn].mean(axis=1))


def _ratio(
    numerator: NDArray[np.float64] | np.float64, denominator: NDArray[np.float64] | np.float64
) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.zeros_like(denominator, dtype=np.float64), where=denominator > 0)
