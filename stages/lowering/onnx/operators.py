"""ONNX emitters of torch's own operators: convolution, linear, norms, activations, arithmetic, shapes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.fx import Node

from pipelines.errors import LoweringError
from stages.lowering.graph import Weight, register, source_line
from stages.lowering.onnx import linears, weights
from stages.lowering.onnx.builder import GraphBuilder

lowers = partial(register, "onnx")
Shape = tuple[int | str, ...]


def shape_of(node: Any) -> Shape:
    """The captured shape of a node's result; a size that varies is its symbol, as a string."""
    return tuple(size if isinstance(size, int) else str(size) for size in node.meta["val"].shape)


def reshape(graph: GraphBuilder, x: ir.Value, source: Shape, target: Shape) -> ir.Value:
    """x from shape source to target. What comes back to the shape that it had before is that value itself."""
    origin, before = graph.shared.get(("reshaped", x), (x, source))
    if before == target:
        return origin
    varying = sum(isinstance(size, str) for size in target)
    if varying > 1:
        raise LoweringError(f"a reshape to {target} has more than one size that varies", hint="ONNX allows one.")
    sizes = [-1 if isinstance(size, str) else size for size in target]
    result = graph.op("Reshape", origin, graph.constant(sizes, np.int64))
    graph.shared["reshaped", result] = (origin, before)
    return result


def transpose(graph: GraphBuilder, x: ir.Value, permutation: Sequence[int]) -> ir.Value:
    """x with its axes permuted; a permutation that undoes the one before it gives that one's input."""
    origin, before = graph.shared.get(("transposed", x), (x, list(range(len(permutation)))))
    total = [before[axis] for axis in permutation]
    if total == sorted(total):
        return origin
    result = graph.op("Transpose", origin, perm=total)
    graph.shared["transposed", result] = (origin, total)
    return result


@lowers("aten.conv2d.default")
def conv2d(
    graph: GraphBuilder,
    node: Node,
    x: ir.Value,
    weight: Weight,
    bias: Weight | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> ir.Value:
    pads = [*padding, *padding] if len(padding) == 2 else list(padding) * 4
    return graph.op(
        "Conv",
        x,
        weight,
        *([bias] if bias else []),
        kernel_shape=list(weight.shape[2:]),
        strides=list(stride),
        pads=pads,
        dilations=list(dilation),
        group=groups,
    )


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


@lowers("aten.silu.default")
def silu(graph: GraphBuilder, node: Node, x: ir.Value) -> ir.Value:
    return graph.op("Mul", x, graph.op("Sigmoid", x))


@lowers("aten.scaled_dot_product_attention.default")
def attention(
    graph: GraphBuilder,
    node: Node,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    mask: ir.Value | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **unused: Any,
) -> ir.Value:
    """query, key, value: (B, H, N, head_dim), as many heads each; no mask."""
    if mask is not None or is_causal or dropout:
        raise LoweringError(
            f"attention with a mask or dropout has no lowering for onnx; it comes from {source_line(node)}",
            hint="Use stages.models.ops.cached_attention for causal attention, or register your own lowering.",
        )
    scale = scale or float(shape_of(node.args[0])[-1]) ** -0.5
    scores = graph.op("MatMul", query, transpose(graph, key, [0, 1, 3, 2]))
    scores = graph.op("Mul", scores, graph.constant(scale, np.float32))
    return graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)


def _unary(operator: str) -> Callable[..., ir.Value]:
    return lambda graph, node, x: graph.op(operator, x)


def _binary(operator: str, dtype: ir.DataType | None = None) -> Callable[..., ir.Value]:
    def emitter(graph: GraphBuilder, node: Node, left: Any, right: Any, alpha: float = 1) -> ir.Value:
        like = left if isinstance(left, ir.Value) else right
        left, right = graph.operand(left, like), graph.operand(right, like)
        if alpha != 1:
            right = graph.op("Mul", right, graph.operand(alpha, right))
        return graph.op(operator, left, right, dtype=dtype)

    return emitter


for _name, _operator in {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "sqrt": "Sqrt"}.items():
    lowers(f"aten.{_name}.default")(_unary(_operator))
lowers("aten.hardswish.default")(_unary("HardSwish"))
lowers("aten.neg.default")(_unary("Neg"))
for _name, _operator in {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}.items():
    lowers(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_binary(_operator))
lowers("aten.eq.Scalar", "aten.eq.Tensor")(_binary("Equal", dtype=ir.DataType.BOOL))
lowers("aten.matmul.default", "aten.bmm.default")(_binary("MatMul"))


@lowers("aten.where.self")
def where(graph: GraphBuilder, node: Node, condition: ir.Value, chosen: ir.Value, other: ir.Value) -> ir.Value:
    return graph.op("Where", condition, chosen, other, dtype=chosen.dtype)


@lowers("aten.softmax.int")
def softmax(graph: GraphBuilder, node: Node, x: ir.Value, axis: int, *unused: Any) -> ir.Value:
    return graph.op("Softmax", x, axis=axis)


@lowers("aten.mean.dim")
def mean(graph: GraphBuilder, node: Node, x: ir.Value, axes: Sequence[int], keep: bool = False) -> ir.Value:
    return graph.op("ReduceMean", x, graph.constant(list(axes), np.int64), keepdims=int(keep))


@lowers(
    "aten.view.default",
    "aten.reshape.default",
    "aten.flatten.using_ints",
    "aten.unsqueeze.default",
    "aten.squeeze.dim",
)
def to_shape(graph: GraphBuilder, node: Node, x: ir.Value, *unused: Any) -> ir.Value:
    return reshape(graph, x, shape_of(node.args[0]), shape_of(node))


@lowers("aten.permute.default")
def permute(graph: GraphBuilder, node: Node, x: ir.Value, axes: Sequence[int]) -> ir.Value:
    return transpose(graph, x, [axis % len(axes) for axis in axes])


@lowers("aten.transpose.int")
def swap_axes(graph: GraphBuilder, node: Node, x: ir.Value, first: int, second: int) -> ir.Value:
    axes = list(range(len(shape_of(node))))
    axes[first], axes[second] = axes[second], axes[first]
    return transpose(graph, x, axes)


@lowers("aten.unbind.int")
def unbind(graph: GraphBuilder, node: Node, x: ir.Value, axis: int = 0) -> list[ir.Value]:
    count = len(node.meta["val"])
    parts = graph.ops(count, "Split", x, axis=axis, num_outputs=count)
    return [graph.op("Squeeze", part, graph.constant([axis], np.int64)) for part in parts]


@lowers("aten.cat.default")
def concatenate(graph: GraphBuilder, node: Node, parts: Sequence[ir.Value], axis: int = 0) -> ir.Value:
    return graph.op("Concat", *parts, axis=axis)


@lowers("aten.select.int")
def select(graph: GraphBuilder, node: Node, x: ir.Value, axis: int, index: int) -> ir.Value:
    return graph.op("Gather", x, graph.constant(index, np.int64), axis=axis)


@lowers("aten.contiguous.default", "aten.clone.default", "aten.dropout.default")
def same(graph: GraphBuilder, node: Node, x: ir.Value, *unused: Any, **keywords: Any) -> ir.Value:
    return x


@lowers("aten.sym_size.int")
def size(graph: GraphBuilder, node: Node, *unused: Any) -> Any:
    """A size that varies stays a symbol: `reshape` reads it from the captured shapes."""
    return node.meta["val"]
