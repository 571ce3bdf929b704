"""How far numbers are from those that they should be, summed up over blocks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageError


class Difference:
    """Sums over blocks of numbers: of squared differences, and of the reference's variance row by row."""

    def __init__(self, sums: Sequence[float] = (0.0, 0.0)) -> None:
        self.squares, self.spread = sums

    def add(self, expected: NDArray[Any], found: NDArray[Any]) -> "Difference":
        """Add rows (N, V) of both, or one row (V,)."""
        for row, other in zip(*(np.atleast_2d(values.astype(np.float32)) for values in (expected, found)), strict=True):
            self.squares += float(np.square(row - other, dtype=np.float64).sum())
            self.spread += float(np.square(row - row.mean(), dtype=np.float64).sum())
        return self

    @property
    def sums(self) -> list[float]:
        """What another Difference can go on from."""
        return [self.squares, self.spread]

    def relative(self) -> float:
        """Root mean square difference over the root mean square deviation from each row's mean."""
        if not np.isfinite(self.sums).all():
            raise StageError(
                "the shipped files give values that are not finite where torch, with the same weights, does not",
                hint="A layer leaves float16's range: Core ML's last layer is the logits, which no probe measures.",
            )
        return float((self.squares / max(self.spread, np.finfo(np.float64).tiny)) ** 0.5)
