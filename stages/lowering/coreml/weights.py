"""Weights of the neutral store as Core ML constants: exactly the bits that the quantizer chose.

| store            | Core ML                                                                                   |
|------------------|-------------------------------------------------------------------------------------------|
| float            | const float16                                                                             |
| affine symmetric | constexpr_blockwise_shift_scale, int4 or int8 data, float16 scales, no offset             |
| affine           | constexpr_blockwise_shift_scale, uint4 or uint8 data and offsets, float16 scales          |
| palette          | constexpr_lut_to_dense, uint1/2/3/4/6/8 indices, float16 tables for groups of output rows |

A layer that is kept in float32 has float32 scales, tables or values; one that is scaled has them times a power of two.
The MIL Builder is given the type and the shape of a large constant, and stand-in zeros that take no memory; its bytes
go from the mapped store to weight.bin when the package is saved.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var, types
from numpy.typing import NDArray

from pipelines.errors import LoweringError
from stages.lowering.coreml.blob import BITS
from stages.quantizers.packing import pack_bits, unpack_bits
from stages.quantizers.store import QuantizedStore, TensorFormat

AFFINE_BITS = (4, 8)
PALETTE_BITS = (1, 2, 3, 4, 6, 8)
FLOAT16_MAX = float(np.finfo(np.float16).max)
_SMALL = 4096  # elements; up to here the MIL Builder is given the values themselves
Array = NDArray[Any]
Rows = tuple[int, int]  # first and last + 1


@dataclass(frozen=True)
class Variant:
    """How a tensor is asked for: some of its rows, in a dtype ("float16" or "float32"), times 2^exponent."""

    rows: Rows | None = None
    dtype: str = "float16"
    exponent: int = 0

    @property
    def suffix(self) -> str:
        """Distinguishes the constants; "" for the tensor as it is."""
        rows = f".rows_{self.rows[0]}_{self.rows[1]}" if self.rows else ""
        return rows + self.number_suffix

    @property
    def number_suffix(self) -> str:
        power = f".times_2_{self.exponent}" if self.exponent else ""
        return power + ("" if self.dtype == "float16" else f".{self.dtype}")


PLAIN = Variant()


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


def supported_formats() -> tuple[str, ...]:
    """What a weight may be in Core ML, in the words of a device profile's weight_formats."""
    affine, palettes = (f"affine-int{bits}" for bits in AFFINE_BITS), (f"palette-{bits}" for bits in PALETTE_BITS)
    return ("float16", *affine, *palettes)


class WeightBank:
    """Emits tensors of a store into the current function. The functions of a package share constants, by key."""

    def __init__(self, store: QuantizedStore):
        self.store = store
        self.shared: dict[str, Stored] = {}

    def emit(self, name: str, shape: tuple[int, ...], variant: Variant = PLAIN) -> Var:
        """The tensor as a Var. shape: the captured graph's, of the whole tensor.

        Raises LoweringError for a format that Core ML cannot hold, or another size than the graph's.
        """
        form = self.store.format(name)
        if math.prod(form.shape) != math.prod(shape):
            raise LoweringError(
                f"tensor '{name}' is {tuple(form.shape)} in the store, and {shape} in the captured graph",
                hint="Quantize the checkpoint whose config.json the graph is captured from.",
            )
        if variant.rows:
            shape = (variant.rows[1] - variant.rows[0], *shape[1:])
        key = name + variant.suffix
        if form.format == "float":
            return self._lazy(key, variant.dtype, shape, lambda: self._values(name, shape, variant))
        _check_quantized(name, form, shape)
        kernel = (1,) * (len(shape) - 2)
        if form.format == "palette":
            tables = self._numbers(name, _tables(self.store.palette(name), form, variant.rows), variant)
            arguments = {
                "indices": self._codes(name, form, shape, variant.rows),
                "lut": self.constant(f"{key}.lut", lambda: tables.reshape(len(tables), 1, *kernel, -1, 1)),
            }
            return mb.constexpr_lut_to_dense(**arguments, name=identifier(key))
        scales = self.store.scales(name)[_span(variant.rows)]
        grouped = (*scales.shape, *kernel)
        arguments = {
            "data": self._codes(name, form, shape, variant.rows),
            "scale": self.constant(f"{key}.scale", lambda: self._numbers(name, scales, variant).reshape(grouped)),
        }
        if not form.symmetric:
            rows_key = f"{name}{Variant(variant.rows).suffix}.offset"
            offsets = self.store.zero_points(name)[_span(variant.rows)].reshape(grouped)
            arguments["offset"] = self.constant(rows_key, lambda: _typed(offsets, f"uint{form.bits}"))
        return mb.constexpr_blockwise_shift_scale(**arguments, name=identifier(key))

    def constant(self, key: str, make: Callable[[], Array]) -> Var:
        """A constant whose bytes every function of the package shares, by key."""
        if key not in self.shared:
            self.shared[key] = Stored.of(np.ascontiguousarray(make()))
        stored = self.shared[key]
        return self._const(key, stored.data() if BITS[stored.kind] >= 8 else _unpacked(stored))

    def exact(self, name: str, exponent: int) -> bool:
        """Whether the tensor's numbers (scales, tables or values), times 2^exponent, are float16 without a loss."""
        form = self.store.format(name)
        part = {"affine": self.store.scales, "palette": self.store.palette, "float": self.store.float}[form.format]
        numbers = np.asarray(part(name)).astype(np.float16)
        with np.errstate(over="ignore"):
            scaled = np.ldexp(numbers, exponent)
        return bool(np.isfinite(scaled).all() and (np.ldexp(scaled, -exponent) == numbers).all())

    def _codes(self, name: str, form: TensorFormat, shape: tuple[int, ...], rows: Rows | None) -> Var:
        """The codes' constant, packed as the store packs them; signed ones differ in the highest bit of each."""
        signed = form.format == "affine" and form.symmetric
        kind = f"{'' if signed else 'u'}int{form.bits}"
        part = "indices" if form.format == "palette" else "data"
        return self._lazy(
            f"{name}{Variant(rows).suffix}.{part}", kind, shape, lambda: _packed_codes(self.store, name, rows, signed)
        )

    def _lazy(self, key: str, kind: str, shape: tuple[int, ...], data: Callable[[], Array]) -> Var:
        kind = {"float16": "fp16", "float32": "fp32"}.get(kind, kind)
        stored = self.shared.setdefault(key, Stored(kind, shape, data))
        if math.prod(shape) <= _SMALL:
            return self._const(key, _unpacked(stored))
        dtype = types.nptype_from_builtin(getattr(types, kind))
        return self._const(key, np.broadcast_to(np.zeros((), dtype), shape))

    def _const(self, key: str, value: Array) -> Var:
        var = mb.const(val=value, name=identifier(key))
        var.op.weight_id = key
        return var

    def _values(self, name: str, shape: tuple[int, ...], variant: Variant) -> Array:
        return self._numbers(name, self.store.float(name)[_span(variant.rows)], variant).reshape(shape)

    def _numbers(self, name: str, array: Array, variant: Variant) -> Array:
        scaled = np.ldexp(array, variant.exponent) if variant.exponent else array
        if variant.dtype == "float32":
            return scaled.astype(np.float32)
        return as_float16(name, scaled)


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


def _check_quantized(name: str, form: TensorFormat, shape: tuple[int, ...]) -> None:
    allowed = AFFINE_BITS if form.format == "affine" else PALETTE_BITS
    if form.bits not in allowed:
        raise LoweringError(
            f"tensor '{name}' is {form.format} of {form.bits} bits, which Core ML cannot hold",
            hint=f"For {form.format}, choose {' or '.join(map(str, allowed))} bits.",
        )
    if form.format == "affine" and math.prod(shape[2:]) > 1 and form.groups > 1:
        raise LoweringError(
            f"tensor '{name}' {shape} has {form.groups} groups across its kernel; Core ML divides channels only",
            hint="Quantize convolutions wider than 1x1 by channel (one group), or keep them in float16.",
        )


def _tables(palettes: NDArray[np.float16], form: TensorFormat, rows: Rows | None) -> NDArray[np.float16]:
    """Palettes (groups, entries) for groups of equal size: Core ML has no shorter last group, so split where one is."""
    first, last = rows or (0, form.rows)
    if form.groups == 1:
        return np.array(palettes)
    step = math.gcd(last - first, form.group_size, first)
    return palettes[np.arange(first, last, step) // form.group_size]


def _packed_codes(store: QuantizedStore, name: str, rows: Rows | None, signed: bool) -> NDArray[np.uint8]:
    form = store.format(name)
    first, last = rows or (0, form.rows)
    begin, count = first * form.columns * form.bits, (last - first) * form.columns
    if begin % 8 == 0 and (rows is None or count * form.bits % 8 == 0):
        packed = store.packed_codes(name)[begin // 8 : begin // 8 + (count * form.bits + 7) // 8]
    else:
        packed = pack_bits(store.codes(name)[first:last], form.bits)
    if not signed:
        return packed
    flipped = packed ^ np.uint8(0x88 if form.bits == 4 else 0x80)
    if form.bits == 4 and count % 2:
        flipped[-1] &= 0x0F
    return flipped


def _unpacked(stored: Stored) -> Array:
    """The value of a small constant, in the dtype by which numpy carries MIL's type."""
    bits = BITS[stored.kind]
    if bits >= 8:
        return np.ascontiguousarray(stored.data()).reshape(stored.shape).view(_numpy_type(stored.kind))
    codes = unpack_bits(stored.data(), bits, math.prod(stored.shape)).reshape(stored.shape)
    if stored.kind == "int4":
        codes = (codes ^ np.uint8(8)) - np.uint8(8)  # wraps round: extends the sign
    return _typed(codes, stored.kind)


def _typed(array: Array, kind: str) -> Array:
    """Tag an array of bytes with a MIL integer type, which numpy carries as metadata."""
    return np.ascontiguousarray(array).view(_numpy_type(kind))


def _numpy_type(kind: str) -> Any:
    return types.nptype_from_builtin(getattr(types, kind))


def _span(rows: Rows | None) -> Any:
    return slice(*rows) if rows else ...
