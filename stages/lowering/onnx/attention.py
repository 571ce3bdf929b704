"""ONNX emitters of tapeout's own operators: com.microsoft GroupQueryAttention, with the rotary embedding inside.

Also the fusion of a residual addition with the norm behind it (SkipSimplifiedLayerNormalization).
"""

import numpy as np
import onnx_ir as ir
from torch.fx import Node

from stages.lowering.onnx import linears
from stages.lowering.onnx.builder import MICROSOFT, GraphBuilder
from stages.lowering.onnx.shapes import lowers, reshape, shape_of, transpose
from stages.lowering.rotary import rotary_frequencies


@lowers("tapeout.rotary.default")
def rotary(graph: GraphBuilder, node: Node, x: ir.Value, position: ir.Value, theta: float) -> ir.Value:
    """Standing alone a RotaryEmbedding; where only cached_attention reads it, that rotates, and this one falls away."""
    cosines, sines = _rotary_tables(graph, int(shape_of(node)[-1]), theta)
    position = _cast(graph, position, ir.DataType.INT64)
    result = graph.op("RotaryEmbedding", x, position, cosines, sines, domain=MICROSOFT)
    graph.shared["rotated", result] = (x, cosines, sines)
    return result


@lowers("tapeout.cached_attention.default")
def cached_attention(
    graph: GraphBuilder,
    node: Node,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    key_cache: ir.Value,
    value_cache: ir.Value,
    position: ir.Value,
) -> list[ir.Value]:
    """Returns (output (1, H, N, head_dim), new key cache, new value cache).

    The caches may be as long as the context (then past and present can be one buffer, which nothing copies) or hold
    just the rows before position.
    """
    _, heads, count, head_dim = shape_of(node.args[0])
    kv_heads = shape_of(node.args[1])[1]
    rotated = [graph.shared.get(("rotated", x)) for x in (query, key)]
    tables: list[ir.Value | None] = [None, None]
    if all(rotated):
        (query, *tables), (key, *_) = rotated  # type: ignore[misc]
    rows = [
        _rows(graph, x, fx) for x, fx in zip((query, key, value), _unrotated(node, bool(all(rotated))), strict=True)
    ]
    last, total = _lengths(graph, rows[0], position)
    whole = linears.packed(graph, rows)
    output, present_key, present_value = graph.ops(
        3,
        "GroupQueryAttention",
        *([whole, None, None] if whole else rows),
        key_cache,
        value_cache,
        last,
        total,
        *tables,
        domain=MICROSOFT,
        num_heads=heads,
        kv_num_heads=kv_heads,
        do_rotary=int(bool(all(rotated))),
        rotary_interleaved=0,
    )
    output = reshape(graph, output, (1, count, int(heads) * int(head_dim)), (1, count, heads, head_dim))
    return [transpose(graph, output, [0, 2, 1, 3]), present_key, present_value]


def fuse_residuals(graph: GraphBuilder) -> None:
    """Make Add and SimplifiedLayerNormalization one SkipSimplifiedLayerNormalization, which also gives the sum."""
    for norm in graph.residuals:
        node = norm.producer()
        total = node.inputs[0] if node else None
        addition = total.producer() if total else None
        if node is None or total is None or addition is None or addition.op_type != "Add":
            continue
        inputs = [*addition.inputs, node.inputs[1]]
        fused = ir.node(
            "SkipSimplifiedLayerNormalization",
            inputs,
            {"epsilon": node.attributes["epsilon"].as_float()},
            domain=MICROSOFT,
            num_outputs=4,
        )
        graph.replace(node, fused)
        for old, new in ((norm, fused.outputs[0]), (total, fused.outputs[3])):
            new.name, new.type = f"{old.name}_fused", old.type
            ir.convenience.replace_all_uses_with(old, new)
        for unused in fused.outputs[1:3]:
            unused.name = ""


def _unrotated(node: Node, rotated: bool) -> list[Node]:
    query, key, value = node.args[:3]
    return [x.args[0] if rotated and x is not value else x for x in (query, key, value)]  # type: ignore[union-attr, misc]


def _rows(graph: GraphBuilder, x: ir.Value, node: Node) -> ir.Value:
    """(1, H, N, head_dim) -> (1, N, H * head_dim), which is where it mostly came from."""
    batch, heads, count, head_dim = shape_of(node)
    swapped = transpose(graph, x, [0, 2, 1, 3])
    return reshape(graph, swapped, (batch, count, heads, head_dim), (batch, count, int(heads) * int(head_dim)))


def _lengths(graph: GraphBuilder, rows: ir.Value, position: ir.Value) -> tuple[ir.Value, ir.Value]:
    """For GroupQueryAttention: index of the last row (1,) and number of rows (), int32, once these tokens are in."""
    key = ("lengths", position)
    if key not in graph.shared:
        count = graph.op("Shape", rows, dtype=ir.DataType.INT64, start=1, end=2)
        total = graph.op("Add", _cast(graph, position, ir.DataType.INT64), count)
        total = _cast(graph, total, ir.DataType.INT32)
        last = graph.op("Sub", total, graph.constant([1], np.int32))
        graph.shared[key] = last, graph.op("Squeeze", total)
    return graph.shared[key]


def _cast(graph: GraphBuilder, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    return x if x.dtype == dtype else graph.op("Cast", x, dtype=dtype, to=dtype.value)


def _rotary_tables(graph: GraphBuilder, head_dim: int, theta: float) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines (context, head_dim / 2) float32, which the runtime computes when it loads the model."""
    key = ("rotary", head_dim, theta)
    if key not in graph.shared:
        rows = graph.op("Range", *(graph.constant(number, np.float32) for number in (0, graph.context, 1)))
        column = graph.op("Unsqueeze", rows, graph.constant([1], np.int64))
        angles = graph.op("Mul", column, graph.constant(rotary_frequencies(head_dim, theta)))
        graph.shared[key] = graph.op("Cos", angles), graph.op("Sin", angles)
    return graph.shared[key]
