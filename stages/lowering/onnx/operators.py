"""ONNX emitters of what transformers are made of: linear, embedding, norms, activations, attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.fx import Node

from pipelines.errors import LoweringError
from stages.lowering.graph import Weight, source_line
from stages.lowering.onnx import linears, weights
from stages.lowering.onnx.builder import GraphBuilder
from stages.lowering.onnx.shapes import lowers, shape_of, transpose


@lowers("aten.linear.default")
def linear(graph: GraphBuilder, node: Node, x: ir.Value, weight: Weight, bias: Weight | None = None) -> ir.Value:
    return linears.linear(graph, node, x, weight, bias)


@lowers("aten.embedding.default")
def embedding(graph: GraphBuilder, node: Node, weight: Weight, indices: ir.Value, *unused: Any) -> ir.Value:
    return weights.embedding(graph, indices, weight)


@lowers("aten.layer_norm.default")
def layer_norm(
    graph: GraphBuilder,
    node: Node,
    x: ir.Value,
    normalized_shape: Sequence[int],
    weight: Weight | None = None,
    bias: Weight | None = None,
    epsilon: float = 1e-5,
    *unused: Any,
) -> ir.Value:
    scale = weight or graph.constant(np.ones(list(normalized_shape)), np.float32)
    inputs = [scale, bias] if bias else [scale]
    return graph.op("LayerNormalization", x, *inputs, axis=-len(normalized_shape), epsilon=epsilon)


@lowers("aten.rms_norm.default")
def rms_norm(
    graph: GraphBuilder,
    node: Node,
    x: ir.Value,
    normalized_shape: Sequence[int],
    weight: Weight | None = None,
    epsilon: float | None = None,
) -> ir.Value:
    scale = weight or graph.constant(np.ones(list(normalized_shape)), np.float32)
    epsilon = torch.finfo(torch.float32).eps if epsilon is None else epsilon
    result = graph.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=epsilon, stash_type=1)
    added = node.args[0]
    assert isinstance(added, Node)
    if added.target is torch.ops.aten.add.Tensor and len(shape_of(added)) == 3:
        whole = [isinstance(term, Node) and shape_of(term) == shape_of(added) for term in added.args]
        if all(whole):
            graph.residuals.append(result)
    return result


@lowers("aten.gelu.default")
def gelu(graph: GraphBuilder, node: Node, x: ir.Value, approximate: str = "none") -> ir.Value:
    return graph.op("Gelu", x, approximate=approximate)


@lowers("aten.scaled_dot_product_attention.default")
def attention(
    graph: GraphBuilder,
    node: Node,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> ir.Value:
    """query, key, value: (..., N, head_dim), as many heads each; mask: added to the scores, or bool, True: seen."""
    if dropout or enable_gqa:
        raise LoweringError(
            f"attention with dropout or grouped heads has no lowering for onnx; it comes from {source_line(node)}",
            hint="Repeat the heads first, or register your own lowering.",
        )
    rank, (count, head_dim) = len(shape_of(node.args[0])), shape_of(node.args[0])[-2:]
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    scores = graph.op("MatMul", graph.value(query), transpose(graph, graph.value(key), swapped))
    scores = graph.op("Mul", scores, graph.constant(scale or float(head_dim) ** -0.5, np.float32))
    if is_causal:
        length = shape_of(node.args[1])[-2]
        mask = graph.constant(np.tril(np.ones((int(count), int(length)), bool)))
    if mask is not None:
        mask = graph.value(mask)
        if mask.dtype == ir.DataType.BOOL:
            hidden = graph.constant(np.finfo(np.float32).min, np.float32)
            mask = graph.op("Where", mask, graph.constant(0, np.float32), hidden, dtype=ir.DataType.FLOAT)
        scores = graph.op("Add", scores, mask)
    return graph.op("MatMul", graph.op("Softmax", scores, axis=-1), graph.value(value))
