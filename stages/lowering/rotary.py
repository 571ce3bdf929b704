"""The angles of rotary positions, as every target carries them."""

import numpy as np
from numpy.typing import NDArray


def rotary_frequencies(head_dim: int, theta: float) -> NDArray[np.float32]:
    """(head_dim / 2,): a row's angle is its position times these, in float32, as in the model. Rounded from float64, so
    that they are the same bytes whatever processor computes them."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    return (1.0 / theta**exponents).astype(np.float32)


def rotary_tables(rows: int, head_dim: int, theta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines (rows, head_dim / 2) of the angles; the other half of a head turns by the same ones."""
    angles = np.arange(rows, dtype=np.float32)[:, None] * rotary_frequencies(head_dim, theta)
    return np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))
