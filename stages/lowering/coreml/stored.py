"""Constants of weight.bin: their types, their shapes, and how to get the bytes of a stored weight's parts.

The bytes are the store's own: codes stay packed, and are packed anew only where a part of the rows begins or ends
within a byte.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from pipelines.errors import LoweringError
from stages.lowering.coreml.blob import BITS
from stages.quantizers.packing import pack_bits, unpack_bits, unpack_some
from stages.quantizers.store import QuantizedStore, TensorFormat

FLOAT16_MAX = float(np.finfo(np.float16).max)
Array = NDArray[Any]
Rows = tuple[int, int]  # first and last + 1


@dataclass(frozen=True)
class Stored:
    """A constant of weight.bin: MIL's name of its type, its shape, and how to get its bytes (packed, if sub-byte)."""

    kind: str
    shape: tuple[int, ...]
    data: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        return (math.prod(self.shape) * BITS[self.kind] + 7) // 8

    @classmethod
    def of(cls, array: Array) -> "Stored":
        """An array in memory, in any of MIL's types."""
        kind = types.builtin_to_string(types.numpy_type_to_builtin_type(array.dtype))
        if BITS[kind] >= 8:
            return cls(kind, array.shape, lambda: array)
        mask = np.uint8((1 << BITS[kind]) - 1)
        return cls(kind, array.shape, lambda: pack_bits(np.asarray(array).view(np.uint8) & mask, BITS[kind]))

    def value(self) -> Array:
        """The value, unpacked, in the dtype by which numpy carries MIL's type. For small ones."""
        bits = BITS[self.kind]
        if bits >= 8:
            return np.ascontiguousarray(self.data()).reshape(self.shape).view(numpy_type(self.kind))
        codes = unpack_bits(self.data(), bits, math.prod(self.shape)).reshape(self.shape)
        if self.kind == "int4":
            codes = (codes ^ np.uint8(8)) - np.uint8(8)  # wraps round: extends the sign
        return typed(codes, self.kind)


@dataclass(frozen=True)
class Parts:
    """The codes, values and mask of some rows of a stored tensor (None: of all)."""

    store: QuantizedStore
    name: str
    rows: Rows | None

    @property
    def form(self) -> TensorFormat:
        return self.store.format(self.name)

    def span(self) -> Rows:
        """First row and last + 1. Raises LoweringError where a vector of rows would be divided."""
        first, last = self.rows or (0, self.form.rows)
        if first % self.form.vector or last % self.form.vector:
            raise LoweringError(
                f"tensor '{self.name}' has vectors of {self.form.vector} rows; rows {first} to {last - 1} divide one",
                hint=f"Set head_width of the device to a multiple of {self.form.vector}, or to 0.",
            )
        return first, last

    def stored(self) -> tuple[int, int]:
        """Which of the tensor's codes (or values) these rows have: the first, and how many."""
        first, last = self.span()
        begin = self.store.stored_before(self.name, first)
        count = self.store.stored_before(self.name, last) - begin
        if not count:
            raise LoweringError(
                f"tensor '{self.name}' keeps no weight of rows {first} to {last - 1}, which Core ML has no form for",
                hint="Set a lower quantize.sparsity for it.",
            )
        return begin, count

    def codes(self, signed: bool) -> NDArray[np.uint8]:
        """Packed as the store packs them; signed ones differ in the highest bit of each."""
        form, (begin, count) = self.form, self.stored()
        packed = _part(self.store.packed_codes(self.name), form.bits, begin, count)
        if not signed:
            return packed
        flipped = packed ^ np.uint8(0x88 if form.bits == 4 else 0x80)
        if form.bits == 4 and count % 2:
            flipped[-1] &= 0x0F
        return flipped

    def mask(self) -> NDArray[np.uint8]:
        """Packed, one bit a code."""
        begin, end = (row // self.form.vector * self.form.columns for row in self.span())
        return _part(self.store.packed_mask(self.name), 1, begin, end - begin)

    def values(self) -> Array:
        """The kept ones of a float tensor, flat."""
        begin, count = self.stored()
        return self.store.values(self.name)[begin : begin + count]

    def tables(self) -> NDArray[np.float16]:
        """Palettes (groups, entries[, vector]) for groups of equal size: Core ML has no shorter last group, so split
        where one is."""
        palettes, (first, last) = self.store.palette(self.name), self.span()
        if self.form.groups == 1:
            return np.array(palettes)
        step = math.gcd(last - first, self.form.group_size, first)
        return palettes[np.arange(first, last, step) // self.form.group_size]


def identifier(name: str) -> str:
    """The name as MIL allows it: letters, digits and underscores."""
    return re.sub(r"\W", "_", name)


def as_float16(name: str, array: Array) -> NDArray[np.float16]:
    """Round to float16. Raises LoweringError, naming the tensor, where a value is beyond its range."""
    largest = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))
    if not largest <= FLOAT16_MAX:
        raise LoweringError(
            f"tensor '{name}' holds {largest:.6g}, beyond float16's range of {FLOAT16_MAX:.0f}",
            hint="Core ML computes in float16: scale the layer before it is quantized, or give the ranges of the "
            "model's values, with the policy 'float32'.",
        )
    return array.astype(np.float16, copy=False)


def typed(array: Array, kind: str) -> Array:
    """Tag an array of bytes with a MIL integer type, which numpy carries as metadata."""
    return np.ascontiguousarray(array).view(numpy_type(kind))


def numpy_type(kind: str) -> Any:
    return types.nptype_from_builtin(getattr(types, kind))


def _part(packed: NDArray[np.uint8], bits: int, begin: int, count: int) -> NDArray[np.uint8]:
    """`count` codes from number `begin` on, packed; the store's own bytes where they begin and end there."""
    ends = (begin + count) * bits
    if begin * bits % 8 == 0 and (ends % 8 == 0 or (ends + 7) // 8 == packed.size):
        return packed[begin * bits // 8 : (ends + 7) // 8]
    return pack_bits(unpack_some(packed, bits, begin, count), bits)
