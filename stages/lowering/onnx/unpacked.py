"""Affine weights as float32: codes, minus zero points, times scales. The file is as small as the codes.

folded: by operators that the runtime folds when it loads the model, so that a step costs what it costs with float
weights; it needs a kernel on the CPU for each of them, on whichever processor the model runs then.
dequantized: by a DequantizeLinear, which is not folded, but runs every time. onnxruntime-web's build for WebGPU has no
Cast of uint4, so that it cannot fold.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from stages.lowering.onnx.builder import GraphBuilder
from stages.quantizers.packing import pack_bits
from stages.quantizers.store import TensorFormat

_NARROW = 4  # bits of ONNX's narrowest type in opset 21


def dequantized(graph: GraphBuilder, names: Sequence[str], shape: Sequence[int]) -> ir.Value:
    """The weights as float32 in that shape, laid one behind the other. They need codes of one format."""
    key = ("unpacked", *names)
    if key not in graph.shared:
        form = graph.store.format(names[0])
        rows = sum(graph.store.format(name).rows for name in names)
        make = _by_each_run if graph.unpack_weights == "dequantized" else _when_loaded
        graph.shared[key] = graph.op("Reshape", make(graph, names, form, rows), graph.constant(shape, np.int64))
    return graph.shared[key]


def place_of_codes(graph: GraphBuilder, names: Sequence[str]) -> tuple[int, int]:
    """Where the weights' codes stand in the data, row by row without gaps; what reads them in two ways shares them."""
    key = ("codes", *names)
    if key not in graph.shared:
        forms = [graph.store.format(name) for name in names]
        if all(form.rows * form.columns * form.bits % 8 == 0 for form in forms):
            parts = [graph.store.packed_codes(name) for name in names]
        else:
            codes = np.concatenate([graph.store.codes(name).reshape(-1) for name in names])
            parts = [pack_bits(codes, forms[0].bits)]
        graph.shared[key] = graph.append(*parts)
    return graph.shared[key]


def place_of_scales(graph: GraphBuilder, names: Sequence[str]) -> tuple[int, int]:
    """Where their scales stand: float16 (rows, groups)."""
    key = ("scales", *names)
    if key not in graph.shared:
        graph.shared[key] = graph.append(*(graph.store.scales(name) for name in names))
    return graph.shared[key]


def _when_loaded(graph: GraphBuilder, names: Sequence[str], form: TensorFormat, rows: int) -> ir.Value:
    """float32 (rows, groups, group_size)."""
    values = graph.op("Sub", _codes(graph, names, form, rows), _zero_points(graph, names, form, rows))
    return graph.op("Mul", values, _scales(graph, names, (rows, form.groups, 1)))


def _by_each_run(graph: GraphBuilder, names: Sequence[str], form: TensorFormat, rows: int) -> ir.Value:
    """float32 (rows, columns). Codes of 2 bits are stored as ones of 4. Zero points stand there even where all are the
    same: without them, codes would be signed."""
    label, bits = f"{'+'.join(names)}.dense", max(form.bits, _NARROW)
    if form.bits == bits:
        place = place_of_codes(graph, names)
    else:
        codes = np.concatenate([graph.store.codes(name).reshape(-1) for name in names])
        place = graph.append(pack_bits(codes, bits))
    if form.symmetric:
        points = np.full((rows, form.groups), 1 << (form.bits - 1), np.uint8)
    else:
        points = np.concatenate([graph.store.zero_points(name) for name in names])
    return graph.op(
        "DequantizeLinear",
        graph.placed(f"{label}.codes", place, _unsigned(bits), (rows, form.columns)),
        _scales(graph, names, (rows, form.groups)),
        graph.stored(f"{label}.zero_points", pack_bits(points, bits), _unsigned(bits), (rows, form.groups)),
        dtype=ir.DataType.FLOAT,
        axis=1,
        block_size=form.group_size,
    )


def _scales(graph: GraphBuilder, names: Sequence[str], shape: Sequence[int]) -> ir.Value:
    label = f"{'+'.join(names)}.dense.scales"
    return _cast(graph, graph.placed(label, place_of_scales(graph, names), ir.DataType.FLOAT16, shape))


def _codes(graph: GraphBuilder, names: Sequence[str], form: TensorFormat, rows: int) -> ir.Value:
    """float32 (rows, groups, group_size). Codes of 2 bits, for which opset 21 has no type, are shifted out of bytes."""
    place, name = place_of_codes(graph, names), f"{'+'.join(names)}.dense.codes"
    grouped = (rows, form.groups, form.group_size)
    if form.bits >= _NARROW:
        return _cast(graph, graph.placed(name, place, _unsigned(form.bits), grouped))
    four = graph.placed(name, place, ir.DataType.UINT8, (place[1], 1))
    shifted = graph.op("BitShift", four, graph.constant([[0, 2, 4, 6]], np.uint8), direction="RIGHT")
    codes = graph.op("BitwiseAnd", shifted, graph.constant(3, np.uint8))
    codes = graph.op("Reshape", codes, graph.constant([-1], np.int64))
    if rows * form.columns % 4:  # what fills the last byte
        codes = graph.op("Slice", codes, *(graph.constant([end], np.int64) for end in (0, rows * form.columns)))
    return _cast(graph, graph.op("Reshape", codes, graph.constant(grouped, np.int64)))


def _zero_points(graph: GraphBuilder, names: Sequence[str], form: TensorFormat, rows: int) -> ir.Value:
    """float32 (rows, groups, 1), or () where they are all the same."""
    if form.symmetric:
        return graph.constant(1 << (form.bits - 1), np.float32)
    points = np.concatenate([graph.store.zero_points(name) for name in names])
    bits = max(form.bits, _NARROW)
    name = f"{'+'.join(names)}.dense.zero_points"
    return _cast(graph, graph.stored(name, pack_bits(points, bits), _unsigned(bits), (rows, form.groups, 1)))


def _unsigned(bits: int) -> ir.DataType:
    return ir.DataType.UINT4 if bits == _NARROW else ir.DataType.UINT8


def _cast(graph: GraphBuilder, value: ir.Value) -> ir.Value:
    return graph.op("Cast", value, dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT.value)
