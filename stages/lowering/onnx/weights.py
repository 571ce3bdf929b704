"""How a stored weight looks in an ONNX graph: exactly the store's bits, in the encoding that the runtime reads fastest.

    float                 a float16 (or float32) initializer and a Cast, which the runtime folds when it loads the model
    affine in a linear    com.microsoft MatMulNBits; or as elsewhere, where the graph unpacks its weights
    affine as a table     com.microsoft GatherBlockQuantized
    affine elsewhere      codes, minus zero points, times scales, folded when the model is loaded, or DequantizeLinear
    palette, sparse       none: LoweringError

A scale holds for `group_size` columns; MatMulNBits wants blocks of a power of two, at least 16. Where a group is
larger, its scale is repeated when the model is loaded, so that the file holds it once.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pipelines.errors import LoweringError
from stages.lowering.graph import Weight
from stages.lowering.limits import block_size
from stages.lowering.onnx import unpacked
from stages.lowering.onnx.builder import MICROSOFT, GraphBuilder
from stages.quantizers.packing import pack_bits
from stages.quantizers.store import QuantizedStore, TensorFormat

SUPPORTED_BITS = (2, 4, 8)


def dense(graph: GraphBuilder, weight: Weight) -> ir.Value:
    """The weight as float32 in its own shape."""
    key = ("dense", weight.name)
    if key not in graph.shared:
        form = _format(graph, weight.name)
        if form.format == "float":
            graph.shared[key] = _cast(graph, _float(graph, weight.name))
        else:
            graph.shared[key] = unpacked.dequantized(graph, [weight.name], form.shape)
    return graph.shared[key]


def linear(graph: GraphBuilder, x: ir.Value, matrices: Sequence[Weight], offsets: Sequence[ir.Value]) -> ir.Value:
    """x (..., in) times the weights (out, in), laid one behind the other and transposed, plus the biases (out,).

    Several weights need codes of one format.
    """
    names = tuple(weight.name for weight in matrices)
    forms = [_format(graph, name) for name in names]
    form, rows = forms[0], sum(form.rows for form in forms)
    bias = graph.op("Concat", *offsets, axis=0) if len(offsets) > 1 else next(iter(offsets), None)
    if form.format == "float" or graph.unpack_weights != "never":
        one = len(matrices) == 1
        whole = dense(graph, matrices[0]) if one else unpacked.dequantized(graph, names, (rows, form.columns))
        product = graph.op("MatMul", x, graph.op("Transpose", whole, perm=[1, 0]))
        return product if bias is None else graph.op("Add", product, bias)
    blocks = _blocks(graph, names)
    return graph.op(
        "MatMulNBits",
        x,
        blocks.codes((rows, blocks.count, blocks.size * form.bits // 8)),
        blocks.scales,
        blocks.zero_points,
        *([None, bias] if bias is not None else []),
        domain=MICROSOFT,
        K=form.columns,
        N=rows,
        bits=form.bits,
        block_size=blocks.size,
        accuracy_level=graph.accuracy_level,
    )


def embedding(graph: GraphBuilder, indices: ir.Value, weight: Weight) -> ir.Value:
    """Rows of the weight (vocabulary, width) as float32 (..., width)."""
    form = _format(graph, weight.name)
    if form.format == "float":
        rows = graph.op("Gather", _float(graph, weight.name), indices, axis=0)
        return _cast(graph, rows)
    blocks = _blocks(graph, (weight.name,))
    rows = graph.op(
        "GatherBlockQuantized",
        blocks.codes((form.rows, blocks.count * blocks.size * form.bits // 8)),
        indices,
        blocks.scales,
        blocks.zero_points,
        domain=MICROSOFT,
        dtype=ir.DataType.FLOAT,
        bits=form.bits,
        block_size=blocks.size,
        gather_axis=0,
        quantize_axis=1,
    )
    if blocks.count * blocks.size == form.columns:
        return rows
    return graph.op("Slice", rows, *(graph.constant([number], np.int64) for number in (0, form.columns, -1)))


def check_formats(store: QuantizedStore) -> None:
    """Raises LoweringError for the first weight that ONNX Runtime cannot hold, before anything is captured."""
    for name in store.names():
        _check_format(name, store.format(name))


def supported_formats() -> tuple[str, ...]:
    """What a weight may be in ONNX Runtime, in the words of a device profile's weight_formats."""
    return ("float32", "float16", *(f"affine-int{bits}" for bits in reversed(SUPPORTED_BITS)))


class _Blocks:
    """Affine weights of one format in the blocks of MatMulNBits and GatherBlockQuantized; both read the same bytes."""

    def __init__(self, graph: GraphBuilder, names: Sequence[str], size: int):
        self.graph, self.names, self.size = graph, names, size
        self.form = graph.store.format(names[0])
        self.rows = sum(graph.store.format(name).rows for name in names)
        self.count = math.ceil(self.form.columns / size)
        self.label = "+".join(names)
        self.place = self._place()
        self.scales = self._repeated_scales()
        self.zero_points = None if self.form.symmetric else self._zero_points()
        self.views: dict[tuple[int, ...], ir.Value] = {}

    def codes(self, shape: tuple[int, ...]) -> ir.Value:
        if shape not in self.views:
            name = f"{self.label}.codes" + (f".{len(self.views)}" if self.views else "")
            self.views[shape] = self.graph.placed(name, self.place, ir.DataType.UINT8, shape)
        return self.views[shape]

    def _place(self) -> tuple[int, int]:
        missing = self.count * self.size - self.form.columns
        if not missing:
            return unpacked.place_of_codes(self.graph, self.names)
        codes = (np.pad(self.graph.store.codes(name), ((0, 0), (0, missing))) for name in self.names)
        return self.graph.append(*(pack_bits(padded, self.form.bits) for padded in codes))

    def _repeated_scales(self) -> ir.Value:
        groups, repeats = self.form.groups, self.count // self.form.groups
        place = unpacked.place_of_scales(self.graph, self.names)
        scales = self.graph.placed(f"{self.label}.scales", place, ir.DataType.FLOAT16, (self.rows, groups))
        value = _cast(self.graph, scales)
        if repeats == 1:
            return value
        value = self.graph.op("Unsqueeze", value, self.graph.constant([2], np.int64))
        value = self.graph.op("Expand", value, self.graph.constant([self.rows, groups, repeats], np.int64))
        return self.graph.op("Reshape", value, self.graph.constant([self.rows, self.count], np.int64))

    def _zero_points(self) -> ir.Value:
        """Packed row by row; each row starts a byte."""
        packed = [self._packed_points(name) for name in self.names]
        shape = (self.rows, packed[0].shape[1])
        return self.graph.placed(f"{self.label}.zero_points", self.graph.append(*packed), ir.DataType.UINT8, shape)

    def _packed_points(self, name: str) -> NDArray[np.uint8]:
        points = self.graph.store.zero_points(name).repeat(self.count // self.form.groups, axis=1)
        points = np.pad(points, ((0, 0), (0, -self.count % (8 // self.form.bits))))
        return pack_bits(points, self.form.bits).reshape(len(points), -1)


def _format(graph: GraphBuilder, name: str) -> TensorFormat:
    form = graph.store.format(name)
    _check_format(name, form)
    return form


def _check_format(name: str, form: TensorFormat) -> None:
    held = supported_formats()
    if all(need in held for need in form.needs()):
        return
    if form.format == "palette":
        what, instead = f"a palette of {form.bits} bits", "quantize.format=affine and one of these widths"
    elif form.format == "affine" and form.bits not in SUPPORTED_BITS:
        what, instead = f"affine, {form.bits} bits", "one of these widths"
    else:
        what, instead = f"sparse ({form.sparsity:.0%} zeros by a mask)", "quantize.sparsity=0 for this device"
    raise LoweringError(
        f"weight '{name}' is {what}, which ONNX Runtime cannot hold",
        hint=f"It holds {', '.join(held)}, all of them dense. Choose {instead}.",
    )


def _blocks(graph: GraphBuilder, names: tuple[str, ...]) -> _Blocks:
    key = ("blocks", names)
    if key not in graph.shared:
        form = _format(graph, names[0])
        size = block_size(form.columns, form.group_size)
        if size is None:
            raise LoweringError(
                f"weight '{names[0]}' has groups of {form.group_size}, which ONNX Runtime cannot hold",
                hint="Choose quantize.group_size as a multiple of 16 (32 is usual), or one group a row.",
            )
        graph.shared[key] = _Blocks(graph, names, size)
    return graph.shared[key]


def _float(graph: GraphBuilder, name: str) -> ir.Value:
    key = ("float", name)
    if key not in graph.shared:
        array = graph.store.float(name)
        dtype = ir.DataType.FLOAT16 if array.dtype == np.float16 else ir.DataType.FLOAT
        graph.shared[key] = graph.stored(name, array, dtype, array.shape)
    return graph.shared[key]


def _cast(graph: GraphBuilder, value: ir.Value) -> ir.Value:
    if value.dtype == ir.DataType.FLOAT:
        return value
    return graph.op("Cast", value, dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT.value)
