"""Weights of the neutral store as Core ML constants: exactly the bits that the quantizer chose.

| store            | Core ML                                                                                   |
|------------------|-------------------------------------------------------------------------------------------|
| float            | const float16                                                                             |
| affine symmetric | constexpr_blockwise_shift_scale, int4 or int8 data, float16 scales, no offset             |
| affine           | constexpr_blockwise_shift_scale, uint4 or uint8 data and offsets, float16 scales          |
| palette          | constexpr_lut_to_dense, uint1/2/3/4/6/8 indices, float16 tables for groups of output rows |
| vectors          | the same, with a vector_axis of 0: an entry stands for consecutive output rows            |
| channel scales   | constexpr_blockwise_shift_scale of that, one float16 scale a row                          |
| sparse           | constexpr_sparse_to_dense, of the kept values, and of what constexpr_lut_to_sparse or     |
|                  | constexpr_sparse_blockwise_shift_scale make of the kept codes                             |

The chains are those that coremltools makes of torch models compressed so. A layer that is kept in float32 has float32
scales, tables or values; one that is scaled has them times a power of two. Values are those of the store rounded once,
to the dtype of the layer: each is a product of two float16 numbers, or of one and a code.

The MIL Builder is given the type and the shape of a large constant, and stand-in zeros that take no memory; its bytes
go from the mapped store to weight.bin when the package is saved.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var

from pipelines.errors import LoweringError
from stages.lowering.coreml.blob import BITS
from stages.lowering.coreml.stored import Array, Parts, Rows, Stored, as_float16, identifier, numpy_type, typed
from stages.quantizers.store import QuantizedStore, TensorFormat

AFFINE_BITS = (4, 8)
PALETTE_BITS = (1, 2, 3, 4, 6, 8)
_SMALL = 4096  # elements; up to here the MIL Builder is given the values themselves


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
        power = f".times_2_{self.exponent}" if self.exponent else ""
        return rows + power + ("" if self.dtype == "float16" else f".{self.dtype}")


PLAIN = Variant()


def supported_formats() -> tuple[str, ...]:
    """What a weight may be in Core ML, in the words of a device profile's weight_formats."""
    affine, palettes = (f"affine-int{bits}" for bits in AFFINE_BITS), (f"palette-{bits}" for bits in PALETTE_BITS)
    return ("float16", *affine, *palettes, "palette-vectors", "palette-channel-scales", "sparse")


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
        if form.format == "float" and not form.sparse:
            return self.lazy(name + variant.suffix, variant.dtype, shape, lambda: self._values(name, shape, variant))
        _check_quantized(name, form, shape)
        return _Emission(self, name, shape, variant).emit()

    def constant(self, key: str, make: Callable[[], Array]) -> Var:
        """A constant whose bytes every function of the package shares, by key."""
        if key not in self.shared:
            self.shared[key] = Stored.of(np.ascontiguousarray(make()))
        stored = self.shared[key]
        return self._const(key, stored.data() if BITS[stored.kind] >= 8 else stored.value())

    def lazy(self, key: str, kind: str, shape: tuple[int, ...], data: Callable[[], Array]) -> Var:
        """The same, of a type and shape, whose bytes are asked for when the package is saved."""
        kind = {"float16": "fp16", "float32": "fp32"}.get(kind, kind)
        stored = self.shared.setdefault(key, Stored(kind, shape, data))
        if math.prod(shape) <= _SMALL:
            return self._const(key, stored.value())
        return self._const(key, np.broadcast_to(np.zeros((), numpy_type(kind)), shape))

    def exact(self, name: str, exponent: int) -> bool:
        """Whether the tensor's numbers (scales, tables or values), times 2^exponent, are float16 without a loss."""
        form = self.store.format(name)
        by_format = {"affine": self.store.scales, "palette": self.store.palette, "float": self.store.values}
        part = self.store.channel_scales if form.channel_scale else by_format[form.format]
        numbers = np.asarray(part(name)).astype(np.float16)
        with np.errstate(over="ignore"):
            scaled = np.ldexp(numbers, exponent)
        return bool(np.isfinite(scaled).all() and (np.ldexp(scaled, -exponent) == numbers).all())

    def _const(self, key: str, value: Array) -> Var:
        var = mb.const(val=value, name=identifier(key))
        var.op.weight_id = key
        return var

    def _values(self, name: str, shape: tuple[int, ...], variant: Variant) -> Array:
        rows = slice(*variant.rows) if variant.rows else ...
        return _numbers(name, self.store.float(name)[rows], variant).reshape(shape)


class _Emission:
    """One tensor's constexpr operations; the last of them has the tensor's name."""

    def __init__(self, bank: WeightBank, name: str, shape: tuple[int, ...], variant: Variant):
        self.bank, self.name, self.shape, self.variant = bank, name, shape, variant
        self.form, self.parts = bank.store.format(name), Parts(bank.store, name, variant.rows)
        self.key, self.rows_key = name + variant.suffix, name + Variant(variant.rows).suffix
        self.kernel = (1,) * (len(shape) - 2)

    def emit(self) -> Var:
        if self.form.format == "palette":
            return self._scaled(self._palette("_palette")) if self.form.channel_scale else self._palette()
        if self.form.format == "affine":
            return self._affine()
        values = self.bank.lazy(
            f"{self.key}.values",
            self.variant.dtype,
            (self.parts.stored()[1],),
            lambda: _numbers(self.name, self.parts.values(), self.variant),
        )
        return self._dense(values, self._mask())

    def _palette(self, suffix: str = "") -> Var:
        """suffix: of the operation's name, where it is not the last."""
        vectors = {"vector_axis": np.int32(0)} if self.form.vector > 1 else {}
        variant = self.variant if not self.form.channel_scale else Variant(self.variant.rows, self.variant.dtype)
        tables = self.parts.tables()
        table_shape = (len(tables), 1, *self.kernel, tables.shape[1], self.form.vector)
        arguments = {
            "lut": self.bank.constant(
                f"{self.name}{variant.suffix}.lut", lambda: _numbers(self.name, tables, variant).reshape(table_shape)
            ),
            **vectors,
        }
        if not self.form.sparse:
            indices = self._codes("indices", self._code_shape())
            return mb.constexpr_lut_to_dense(indices=indices, **arguments, name=identifier(self.key) + suffix)
        mask = self._mask()
        with _unread(mask):
            mask, nonzero = mb.constexpr_lut_to_sparse(
                indices_mask=mask,
                indices_nonzero_data=self._codes("indices", (self.parts.stored()[1],)),
                **arguments,
                name=f"{identifier(self.key)}_sparse",
            )
        return self._dense(nonzero, mask, suffix)

    def _scaled(self, values: Var) -> Var:
        """Times a scale a row."""
        rows = slice(*self.parts.span())
        scales = self.bank.store.channel_scales(self.name)[rows]
        if self.variant.dtype == "float16":
            tables = self.parts.tables()
            largest = np.abs(tables).reshape(len(tables), -1).max(1).astype(np.float32)
            products = largest.repeat(len(scales) // len(largest)) * np.abs(scales).astype(np.float32)
            as_float16(self.name, np.ldexp(products, self.variant.exponent))
        shape = (len(scales), 1, *self.kernel)
        scale = self.bank.constant(
            f"{self.key}.channel_scales", lambda: _numbers(self.name, scales, self.variant).reshape(shape)
        )
        return mb.constexpr_blockwise_shift_scale(data=values, scale=scale, name=identifier(self.key))

    def _affine(self) -> Var:
        rows = slice(*self.parts.span())
        scales = self.bank.store.scales(self.name)[rows]
        grouped = (*scales.shape, *self.kernel)
        arguments = {
            "scale": self.bank.constant(
                f"{self.key}.scale", lambda: _numbers(self.name, scales, self.variant).reshape(grouped)
            )
        }
        if not self.form.symmetric:
            offsets = self.bank.store.zero_points(self.name)[rows].reshape(grouped)
            kind = f"uint{self.form.bits}"
            arguments["offset"] = self.bank.constant(f"{self.rows_key}.offset", lambda: typed(offsets, kind))
        if not self.form.sparse:
            data = self._codes("data", self.shape)
            return mb.constexpr_blockwise_shift_scale(data=data, **arguments, name=identifier(self.key))
        mask = self._mask()
        with _unread(mask):
            mask, nonzero = mb.constexpr_sparse_blockwise_shift_scale(
                data_mask=mask,
                nonzero_data=self._codes("data", (self.parts.stored()[1],)),
                **arguments,
                name=f"{identifier(self.key)}_sparse",
            )
        return self._dense(nonzero, mask)

    def _dense(self, nonzero: Var, mask: Var, suffix: str = "") -> Var:
        with _unread(mask):
            return mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=mask, name=identifier(self.key) + suffix)

    def _codes(self, part: str, shape: tuple[int, ...]) -> Var:
        signed = self.form.format == "affine" and self.form.symmetric
        kind = f"{'' if signed else 'u'}int{self.form.bits}"
        return self.bank.lazy(f"{self.rows_key}.{part}", kind, shape, lambda: self.parts.codes(signed))

    def _mask(self) -> Var:
        return self.bank.lazy(f"{self.rows_key}.mask", "uint1", self._code_shape(), self.parts.mask)

    def _code_shape(self) -> tuple[int, ...]:
        return (self.shape[0] // self.form.vector, *self.shape[1:])


def _numbers(name: str, array: Array, variant: Variant) -> Array:
    scaled = np.ldexp(array, variant.exponent) if variant.exponent else array
    return scaled.astype(np.float32) if variant.dtype == "float32" else as_float16(name, scaled)


@contextmanager
def _unread(mask: Var) -> Iterator[None]:
    """coremltools counts the ones of a mask whose value it has; a stand-in has none."""
    value, mask._sym_val = mask._sym_val, None
    try:
        yield
    finally:
        mask._sym_val = value


def _check_quantized(name: str, form: TensorFormat, shape: tuple[int, ...]) -> None:
    held = supported_formats()
    missing = [need for need in form.needs() if need not in held and need != "float32"]
    if missing:
        raise LoweringError(
            f"tensor '{name}' is {form.format} of {form.bits} bits, which Core ML cannot hold",
            hint=f"Core ML holds {', '.join(held)}.",
        )
    if form.format == "affine" and math.prod(shape[2:]) > 1 and form.groups > 1:
        raise LoweringError(
            f"tensor '{name}' {shape} has {form.groups} groups across its kernel; Core ML divides channels only",
            hint="Quantize convolutions wider than 1x1 by channel (one group), or keep them in float16.",
        )
