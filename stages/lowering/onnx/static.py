"""Products whose inputs have static ranges (quantizers/nncf_static.py), as QuantizeLinear and DequantizeLinear pairs.

What ONNX Runtime's own kernels and NPUs' providers read: the input goes to uint8 and back, 8-bit weights of one scale a
row stand as int8 behind a DequantizeLinear. Weights of other formats stay as they are elsewhere.
"""

import json
from typing import Any

import numpy as np
import onnx_ir as ir

from stages.lowering.graph import Weight
from stages.lowering.onnx.builder import GraphBuilder


def is_static(graph: GraphBuilder, weight: Weight) -> bool:
    """Whether the input that this weight multiplies is rounded to a static range."""
    return weight.name in _ranges(graph)


def rounded(graph: GraphBuilder, x: ir.Value, weight: Weight) -> ir.Value:
    """x as the weight's input: rounded, where that is static."""
    grid = _ranges(graph).get(weight.name)
    if grid is None:
        return x
    key = ("static", x, grid["scale"], grid["zero_point"])
    if key not in graph.shared:
        scale, zero_point = graph.constant(grid["scale"], np.float32), graph.constant(grid["zero_point"], np.uint8)
        codes = graph.op("QuantizeLinear", x, scale, zero_point, dtype=ir.DataType.UINT8)
        graph.shared[key] = graph.op("DequantizeLinear", codes, scale, zero_point, dtype=ir.DataType.FLOAT)
    result: ir.Value = graph.shared[key]
    return result


def dequantized(graph: GraphBuilder, weight: Weight, transposed: bool = False) -> ir.Value:
    """The weight (out, ...), or transposed (in, out), as float32; of a static input, from int8."""
    form = graph.store.format(weight.name)
    eight = form.format == "affine" and (form.bits, form.symmetric, form.groups, form.sparse) == (8, True, 1, False)
    if not is_static(graph, weight) or not eight:
        value = graph.value(weight)
        return graph.op("Transpose", value, perm=[1, 0]) if transposed else value
    codes = (graph.store.codes(weight.name) ^ 128).view(np.int8)  # minus the zero point
    codes = codes.T if transposed else codes.reshape(form.shape)
    stored = graph.stored(f"{weight.name}.int8", codes, ir.DataType.INT8, codes.shape)
    scales = graph.store.scales(weight.name)[:, 0].astype(np.float32)
    scale = graph.stored(f"{weight.name}.int8.scales", scales, ir.DataType.FLOAT, scales.shape)
    # Zero points of 0 are the default, but some of the runtime's passes want them, and of each weight its own.
    zeros = np.zeros(len(scales), np.int8)
    zero_point = graph.stored(f"{weight.name}.int8.zero_points", zeros, ir.DataType.INT8, zeros.shape)
    return graph.op("DequantizeLinear", stored, scale, zero_point, dtype=ir.DataType.FLOAT, axis=int(transposed))


def linear(graph: GraphBuilder, x: ir.Value, weight: Weight, bias: ir.Value | None) -> ir.Value:
    product = graph.op("MatMul", rounded(graph, x, weight), dequantized(graph, weight, transposed=True))
    return product if bias is None else graph.op("Add", product, bias)


def _ranges(graph: GraphBuilder) -> dict[str, Any]:
    if "static" not in graph.shared:
        path = graph.store.path / "activations.json"
        graph.shared["static"] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ranges: dict[str, Any] = graph.shared["static"]
    return ranges
