"""What codes mean: exact in float32, in the order in which the runtimes compute.

A product of two float16 numbers, or of one and a code, is exact in float32. A runtime that computes in float16 rounds
it once.
"""

import numpy as np
from numpy.typing import NDArray


def dequantize_affine(
    codes: NDArray[np.uint8], scales: NDArray[np.float16], zero_points: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """codes (out, in), scales and zero points (out, groups) -> float32 (out, in)."""
    rows, columns = codes.shape
    grouped = codes.reshape(rows, scales.shape[1], -1).astype(np.float32)
    grouped -= zero_points[:, :, None]
    grouped *= scales.astype(np.float32)[:, :, None]
    return grouped.reshape(rows, columns)


def dequantize_palette(
    codes: NDArray[np.uint8],
    palette: NDArray[np.float16],
    group_size: int,
    channel_scales: NDArray[np.float16] | None = None,
) -> NDArray[np.float32]:
    """codes (out / vector, in), palette (groups, 2^bits) or (groups, 2^bits, vector) -> float32 (out, in).

    `group_size` rows of the result share a palette (0: all). channel_scales: (out,), what each row is multiplied by.
    """
    entries = palette.astype(np.float32)
    vector = palette.shape[2] if palette.ndim == 3 else 1
    group = np.arange(len(codes)) * vector // (group_size or len(codes) * vector)
    values: NDArray[np.float32] = entries[group[:, None], codes]
    if palette.ndim == 3:  # (out / vector, in, vector): a vector goes down its column
        values = values.transpose(0, 2, 1).reshape(len(codes) * vector, -1)
    if channel_scales is not None:
        values *= channel_scales.astype(np.float32)[:, None]
    return values
