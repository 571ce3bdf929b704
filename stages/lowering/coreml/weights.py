"""Weights of the neutral store as Core ML constants: exactly the bits that the quantizer chose.

| store            | Core ML                                                                                   |
|------------------|-------------------------------------------------------------------------------------------|
| float            | const float16                                                                             |
| affine symmetric | constexpr_blockwise_shift_scale, int4 or int8 data, float16 scales, no offset             |
| affine           | constexpr_blockwise_shift_scale, uint4 or uint8 data and offsets, float16 scales          |
| palette          | constexpr_lut_to_dense, uint1/2/3/4/6/8 indices, float16 tables for groups of output rows |
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
from stages.quantizers.store import QuantizedStore, TensorFormat

AFFINE_BITS = (4, 8)
PALETTE_BITS = (1, 2, 3, 4, 6, 8)
FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class QuantizedConstant:
    """The arguments of a constexpr operation, in its own types."""

    operation: str
    arguments: dict[str, NDArray[Any]]


def supported_formats() -> tuple[str, ...]:
    """What a weight may be in Core ML, in the words of a device profile's weight_formats."""
    affine, palettes = (f"affine-int{bits}" for bits in AFFINE_BITS), (f"palette-{bits}" for bits in PALETTE_BITS)
    return ("float16", *affine, *palettes)


class WeightBank:
    """Emits tensors of a store into the current function. The functions of a package share arrays and bytes."""

    def __init__(self, store: QuantizedStore):
        self.store = store
        self.shared: dict[str, NDArray[Any]] = {}
        self._quantized: dict[str, QuantizedConstant] = {}

    def emit(self, name: str, shape: tuple[int, ...]) -> Var:
        """The tensor as a Var of that shape, float16. Raises LoweringError for a format that Core ML cannot hold."""
        form = self.store.format(name)
        if math.prod(form.shape) != math.prod(shape):
            raise LoweringError(
                f"tensor '{name}' is {tuple(form.shape)} in the store, and {shape} in the captured graph",
                hint="Quantize the checkpoint whose config.json the graph is captured from.",
            )
        if form.format == "float":
            return self.constant(name, lambda: as_float16(name, self.store.dense(name)).reshape(shape))
        if name not in self._quantized:
            self._quantized[name] = _quantized_constant(self.store, name, form, shape)
        constant = self._quantized[name]
        arguments = {
            part: self.constant(f"{name}.{part}", lambda array=array: array)
            for part, array in constant.arguments.items()
        }
        return getattr(mb, constant.operation)(**arguments, name=identifier(name))

    def constant(self, key: str, make: Callable[[], NDArray[Any]]) -> Var:
        """A constant whose bytes every function of the package shares, by key."""
        if key not in self.shared:
            self.shared[key] = make()
        var = mb.const(val=self.shared[key], name=identifier(key))
        var.op.weight_id = key
        return var


def identifier(name: str) -> str:
    """The name as MIL allows it: letters, digits and underscores."""
    return re.sub(r"\W", "_", name)


def as_float16(name: str, array: NDArray[Any]) -> NDArray[np.float16]:
    """Round to float16. Raises LoweringError, naming the tensor, where a value is beyond its range."""
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= FLOAT16_MAX:
        raise LoweringError(
            f"tensor '{name}' holds {largest:.6g}, beyond float16's range of {FLOAT16_MAX:.0f}",
            hint="Core ML computes in float16: scale the layer before it is quantized.",
        )
    return array.astype(np.float16)


def _quantized_constant(
    store: QuantizedStore, name: str, form: TensorFormat, shape: tuple[int, ...]
) -> QuantizedConstant:
    allowed = AFFINE_BITS if form.format == "affine" else PALETTE_BITS
    if form.bits not in allowed:
        raise LoweringError(
            f"tensor '{name}' is {form.format} of {form.bits} bits, which Core ML cannot hold",
            hint=f"For {form.format}, choose {' or '.join(map(str, allowed))} bits.",
        )
    trailing = (1,) * (len(shape) - 2)
    if form.format == "affine":
        if shape[2:] != trailing and form.groups > 1:
            raise LoweringError(
                f"tensor '{name}' {shape} has {form.groups} groups across its kernel; Core ML divides channels only",
                hint="Quantize convolutions wider than 1x1 by channel (one group), or keep them in float16.",
            )
        return _affine(store, name, form, shape, trailing)
    indices = _typed(store.codes(name).reshape(shape), f"uint{form.bits}")
    tables = _tables(store.palette(name), form)
    return QuantizedConstant(
        "constexpr_lut_to_dense", {"indices": indices, "lut": tables.reshape(len(tables), 1, *trailing, -1, 1)}
    )


def _affine(
    store: QuantizedStore, name: str, form: TensorFormat, shape: tuple[int, ...], trailing: tuple[int, ...]
) -> QuantizedConstant:
    codes, scales = store.codes(name).reshape(shape), store.scales(name)
    arguments: dict[str, NDArray[Any]] = {"scale": np.array(scales.reshape(*scales.shape, *trailing))}
    if form.symmetric:
        signed = (codes - np.uint8(1 << (form.bits - 1))).view(np.int8)  # wraps round: 0 becomes the least value
        arguments["data"] = _typed(signed, f"int{form.bits}")
    else:
        offsets = store.zero_points(name).reshape(arguments["scale"].shape)
        arguments["data"], arguments["offset"] = _typed(codes, f"uint{form.bits}"), _typed(offsets, f"uint{form.bits}")
    return QuantizedConstant("constexpr_blockwise_shift_scale", arguments)


def _tables(palettes: NDArray[np.float16], form: TensorFormat) -> NDArray[np.float16]:
    """Palettes (groups, entries) for groups of equal size: Core ML has no shorter last group, so split where one is."""
    if form.groups == 1 or form.rows % form.group_size == 0:
        return np.array(palettes)
    step = math.gcd(form.rows, form.group_size)
    return palettes[np.arange(0, form.rows, step) // form.group_size]


def _typed(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Tag an array of bytes with a MIL integer type, which numpy carries as metadata."""
    return np.ascontiguousarray(array).view(types.nptype_from_builtin(getattr(types, name)))
