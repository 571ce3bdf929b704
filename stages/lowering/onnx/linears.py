"""Linear layers of one input become one product: query, key and value, or gate and up.

A decode step is bound by reading weights; one product of 1,152 rows instead of 896 + 128 + 128 quantizes its input once
and wakes the threads once. The stored rows are laid one behind the other, so every bit stays as it is; what needs a
part alone reads it through a Split, and attention takes the whole (GroupQueryAttention's packed input).
"""

import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from stages.lowering.graph import Weight
from stages.lowering.onnx import static, weights
from stages.lowering.onnx.builder import GraphBuilder


def parameters(program: ExportedProgram) -> dict[str, Weight]:
    """The program's parameters: name of the placeholder -> weight. A GraphBuilder needs them to see what can be one."""
    inputs = [node for node in program.graph.nodes if node.op == "placeholder" and node.meta["val"] is not None]
    shapes = {node.name: tuple(node.meta["val"].shape) for node in inputs}
    return {
        spec.arg.name: Weight(str(spec.target), shapes[spec.arg.name])
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.PARAMETER
    }


def linear(graph: GraphBuilder, node: Node, x: ir.Value, weight: Weight, bias: Weight | None) -> ir.Value:
    """node's product: alone, or its part of the product of all linears that read x."""
    if static.is_static(graph, weight):
        return static.linear(graph, x, weight, graph.value(bias) if bias else None)
    if ("part", node) not in graph.shared:
        group = _fusible(graph, node)
        if len(group) == 1:
            return weights.linear(graph, x, [weight], [graph.value(bias)] if bias else [])
        _fuse(graph, group, x)
    return graph.shared["part", node]


def packed(graph: GraphBuilder, parts: list[ir.Value]) -> ir.Value | None:
    """The product that these are all the parts of, in order; None where they are not."""
    whole = {id(product): product for part in parts for product, _ in [graph.shared.get(("whole", part), (None, None))]}
    product = next(iter(whole.values()))
    return product if len(whole) == 1 and product and graph.shared["whole", parts[0]][1] == parts else None


def _fuse(graph: GraphBuilder, group: list[Node], x: ir.Value) -> None:
    matrices = [graph.parameters[node.args[1].name] for node in group]  # type: ignore[union-attr]
    offsets = [graph.value(graph.parameters[node.args[2].name]) for node in group if len(node.args) > 2]  # type: ignore[union-attr]
    product = weights.linear(graph, x, matrices, offsets)
    sizes = [matrix.shape[0] for matrix in matrices]
    parts = graph.ops(len(group), "Split", product, graph.constant(sizes, "int64"), axis=-1)
    for node, part in zip(group, parts, strict=True):
        graph.shared["part", node], graph.shared["whole", part] = part, (product, parts)


def _fusible(graph: GraphBuilder, node: Node) -> list[Node]:
    """Linears of node's input with codes of one format, each weight read once; node alone where it cannot join."""
    kind = _kind(graph, node)
    if kind is None:
        return [node]
    source = node.args[0]
    assert isinstance(source, Node)
    return [user for user in source.users if user.args[0] is source and _kind(graph, user) == kind]


def _kind(graph: GraphBuilder, node: Node) -> tuple[object, ...] | None:
    if node.target is not torch.ops.aten.linear.default or node.kwargs:
        return None
    matrix, *bias = node.args[1:]
    known = [isinstance(value, Node) and value.name in graph.parameters for value in (matrix, *bias)]
    if not all(known) or len(matrix.users) > 1:  # type: ignore[union-attr]
        return None
    weight = graph.parameters[matrix.name]  # type: ignore[union-attr]
    form = graph.store.format(weight.name)
    if form.format != "affine" or static.is_static(graph, weight):
        return None
    return form.bits, form.group_size, form.symmetric, form.columns, len(bias)
