"""Weights of every format that the store knows, drawn at random, with what they mean written down a second time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.quantizers.packing import BIT_WIDTHS
from stages.quantizers.store import StoreWriter

KERNELS = ((), (1, 1), (3, 3))
PATTERNS = (None, None, "unstructured", "2:4")


@dataclass(frozen=True)
class Described:
    """A weight in one format. float: its values in `values`; the other arrays are those that StoreWriter is given."""

    format: str
    shape: tuple[int, ...]
    bits: int = 0
    group_size: int = 0
    vector: int = 1
    values: NDArray[Any] | None = None
    codes: NDArray[np.uint8] | None = None
    scales: NDArray[np.float16] | None = None
    zero_points: NDArray[np.uint8] | None = None
    palette: NDArray[np.float16] | None = None
    channel_scales: NDArray[np.float16] | None = None
    mask: NDArray[np.bool_] | None = None

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return int(np.prod(self.shape[1:]))

    def kept(self) -> NDArray[np.bool_]:
        return np.ones((self.rows, self.columns), bool) if self.mask is None else self.mask

    def meaning(self) -> NDArray[np.float32]:
        """float32 (out, in), one weight after the other."""
        dense = np.zeros((self.rows, self.columns), np.float32)
        for row, column in zip(*np.nonzero(self.kept()), strict=True):
            dense[row, column] = self._weight(row, column)
        return dense

    def _weight(self, row: int, column: int) -> np.float32:
        if self.values is not None:
            return np.float32(self.values.reshape(self.rows, -1)[row, column])
        assert self.codes is not None
        code = int(self.codes[row // self.vector, column])
        if self.scales is not None:
            group = column // self.group_size
            point = 1 << (self.bits - 1) if self.zero_points is None else int(self.zero_points[row, group])
            return np.float32(self.scales[row, group]) * np.float32(code - point)
        assert self.palette is not None
        entry = self.palette[row // self.group_size if self.group_size else 0, code]
        value = np.float32(entry[row % self.vector] if self.vector > 1 else entry)
        return value if self.channel_scales is None else value * np.float32(self.channel_scales[row])

    def needs(self) -> tuple[str, ...]:
        """As TensorFormat.needs."""
        name = {"affine": f"affine-int{self.bits}", "palette": f"palette-{self.bits}"}
        kind = str(self.values.dtype) if self.values is not None else name[self.format]
        vectors = ("palette-vectors",) if self.vector > 1 else ()
        scales = ("palette-channel-scales",) if self.channel_scales is not None else ()
        return (kind, *vectors, *scales, *(("sparse",) if self.mask is not None else ()))


def write(writer: StoreWriter, name: str, weight: Described) -> None:
    """Add the weight to a store."""
    mask, shape, bits = weight.mask, weight.shape, weight.bits
    if weight.values is not None:
        writer.add_float(name, weight.values, mask=mask)
        return
    assert weight.codes is not None
    if weight.scales is not None:
        writer.add_affine(name, shape, bits, weight.codes, weight.scales, weight.zero_points, mask=mask)
        return
    assert weight.palette is not None
    writer.add_palette(
        name,
        shape,
        bits,
        weight.codes,
        weight.palette,
        weight.group_size,
        channel_scales=weight.channel_scales,
        mask=mask,
    )


@st.composite
def described(
    draw: Any,
    kinds: tuple[str, ...] = ("float", "affine", "palette"),
    bits: dict[str, tuple[int, ...]] | None = None,
    floats: tuple[str, ...] = ("float16", "float32"),
    kernels: tuple[tuple[int, ...], ...] = KERNELS,
    patterns: tuple[str | None, ...] = PATTERNS,
    largest: int = 12,
) -> Described:
    """A weight of one of these kinds and widths, of up to `largest` rows (of vectors) and groups of columns."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind, kernel = draw(st.sampled_from(kinds)), draw(st.sampled_from(kernels))
    width = draw(st.sampled_from((bits or {}).get(kind, BIT_WIDTHS)))
    vector = draw(st.sampled_from([1, 1, 2, 3, 4])) if kind == "palette" else 1
    rows, inputs = vector * draw(st.integers(1, largest)), draw(st.integers(1, largest))
    shape = (rows, inputs, *kernel)
    columns = int(np.prod(shape[1:]))
    mask = _mask(random, rows // vector, columns, draw(st.sampled_from(patterns)))
    mask = None if mask is None else mask.repeat(vector, 0)
    if kind == "float":
        values = random.normal(size=shape).astype(draw(st.sampled_from(floats)))
        return Described(kind, shape, values=values, mask=mask)
    codes = random.integers(0, 1 << width, (rows // vector, columns)).astype(np.uint8)
    if kind == "affine":
        spatial = bool(kernel) and kernel != (1, 1)
        divisors = [columns] if spatial else [size for size in range(1, columns + 1) if columns % size == 0]
        size = draw(st.sampled_from(divisors))
        scales = random.normal(size=(rows, columns // size)).astype(np.float16)
        points = None if draw(st.booleans()) else random.integers(0, 1 << width, scales.shape).astype(np.uint8)
        return Described(kind, shape, width, size, codes=codes, scales=scales, zero_points=points, mask=mask)
    group = vector * draw(st.integers(0, rows // vector))
    entries = (-(-rows // group) if group else 1, 1 << width, *((vector,) if vector > 1 else ()))
    palette = random.normal(size=entries).astype(np.float16)
    channel_scales = random.uniform(0.01, 2, rows).astype(np.float16) if draw(st.booleans()) else None
    return Described(
        kind, shape, width, group, vector, codes=codes, palette=palette, channel_scales=channel_scales, mask=mask
    )


def _mask(random: np.random.Generator, rows: int, columns: int, pattern: str | None) -> NDArray[np.bool_] | None:
    if pattern is None:
        return None
    if pattern == "unstructured":
        mask = random.random((rows, columns)) < random.random()
        mask[random.integers(rows), random.integers(columns)] = True
        return mask
    groups = random.random((rows, -(-columns // 4), 4))
    ranks = groups.argsort(-1).argsort(-1) < 2
    mask = ranks.reshape(rows, -1)[:, :columns]
    mask[0, 0] = True
    return mask
