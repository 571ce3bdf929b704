"""ONNX emitters of arithmetic: activations and other functions of one value, of two, comparisons, reductions, casts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.fx import Node

from stages.lowering.graph import TABLES
from stages.lowering.onnx.builder import GraphBuilder, data_type
from stages.lowering.onnx.shapes import dtype_of, integers, lowers, shape_of, unsupported

Emit = Callable[..., Any]


def _unary(name: str, **attributes: Any) -> Emit:
    return lambda graph, node, x: graph.op(name, graph.cast(x, dtype_of(node)), **attributes)


_UNARY = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "neg": "Neg",
    "abs": "Abs", "erf": "Erf", "sin": "Sin", "cos": "Cos", "floor": "Floor", "ceil": "Ceil", "round": "Round",
    "sign": "Sign", "reciprocal": "Reciprocal", "hardswish": "HardSwish", "mish": "Mish", "logical_not": "Not",
    "bitwise_not": "Not", "softplus": "Softplus",
}  # fmt: skip
for _name, _operator in _UNARY.items():
    lowers(f"aten.{_name}.default")(_unary(_operator))
lowers("aten.hardsigmoid.default")(_unary("HardSigmoid", alpha=1 / 6, beta=0.5))


@lowers("aten.silu.default")
def silu(graph: GraphBuilder, node: Node, x: Any) -> ir.Value:
    return graph.op("Mul", x, graph.op("Sigmoid", x))


@lowers("aten.rsqrt.default")
def rsqrt(graph: GraphBuilder, node: Node, x: Any) -> ir.Value:
    return graph.op("Reciprocal", graph.op("Sqrt", x))


@lowers("aten.glu.default")
def glu(graph: GraphBuilder, node: Node, x: Any, axis: int = -1) -> ir.Value:
    half, gate = graph.ops(2, "Split", x, axis=axis, num_outputs=2)
    return graph.op("Mul", half, graph.op("Sigmoid", gate))


@lowers("aten.leaky_relu.default")
def leaky_relu(graph: GraphBuilder, node: Node, x: Any, slope: float = 0.01) -> ir.Value:
    return graph.op("LeakyRelu", x, alpha=slope)


@lowers("aten.elu.default")
def elu(graph: GraphBuilder, node: Node, x: Any, alpha: float = 1.0, *unused: Any) -> ir.Value:
    return graph.op("Elu", x, alpha=float(alpha))


@lowers("aten.prelu.default")
def prelu(graph: GraphBuilder, node: Node, x: Any, slope: Any) -> ir.Value:
    axes = [1] * (len(shape_of(node)) - 2)
    return graph.op("PRelu", x, graph.op("Reshape", slope, integers(graph, -1, *axes)))


@lowers("aten.clamp.default", "aten.hardtanh.default", "aten.relu6.default", "aten.clamp_min.default")
def clamp(graph: GraphBuilder, node: Node, x: Any, *bounds: Any) -> ir.Value:
    name = str(node.target)
    if "relu6" in name:
        bounds = (0.0, 6.0)
    elif "hardtanh" in name and not bounds:
        bounds = (-1.0, 1.0)
    value = graph.value(x)
    return graph.op("Clip", value, *(None if bound is None else graph.operand(bound, value) for bound in bounds))


@lowers("aten.clamp_max.default")
def clamp_max(graph: GraphBuilder, node: Node, x: Any, bound: Any) -> ir.Value:
    return clamp(graph, node, x, None, bound)


def _operands(graph: GraphBuilder, node: Node, left: Any, right: Any) -> list[ir.Value]:
    """Both in the dtype in which torch computes."""
    known = [getattr(given, "meta", {}).get("val", given) for given in node.args[:2]]
    common = data_type(torch.result_type(*known))
    return [
        graph.constant(value, common.numpy().type) if isinstance(value, int | float) else graph.cast(value, common)
        for value in (left, right)
    ]


def _binary(name: str, **attributes: Any) -> Emit:
    def emitter(graph: GraphBuilder, node: Node, left: Any, right: Any, alpha: float = 1) -> ir.Value:
        left, right = _operands(graph, node, left, right)
        if alpha != 1:
            right = graph.op("Mul", right, graph.operand(alpha, right))
        return graph.cast(graph.op(name, left, right, **attributes), dtype_of(node))

    return emitter


_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "maximum": "Max", "minimum": "Min"}
for _name, _operator in _BINARY.items():
    lowers(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar", f"aten.{_name}.default")(_binary(_operator))
lowers("aten.matmul.default", "aten.bmm.default", "aten.mm.default")(_binary("MatMul"))


@lowers("aten.div.Tensor", "aten.div.Scalar", "aten.true_divide.Tensor")
def divide(graph: GraphBuilder, node: Node, left: Any, right: Any) -> ir.Value:
    left, right = (graph.cast(value, dtype_of(node)) for value in _operands(graph, node, left, right))
    return graph.op("Div", left, right)


@lowers("aten.rsub.Scalar")
def reversed_sub(graph: GraphBuilder, node: Node, x: Any, number: Any, alpha: float = 1) -> ir.Value:
    value = graph.cast(x, dtype_of(node))
    value = value if alpha == 1 else graph.op("Mul", value, graph.operand(alpha, value))
    return graph.op("Sub", graph.operand(number, value), value)


@lowers("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def power(graph: GraphBuilder, node: Node, left: Any, right: Any) -> ir.Value:
    return graph.op("Pow", *_operands(graph, node, left, right))


_COMPARISONS = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}


def _comparison(name: str) -> Emit:
    return lambda graph, node, left, right: graph.op(name, *_operands(graph, node, left, right), dtype=ir.DataType.BOOL)


for _name, _operator in _COMPARISONS.items():
    lowers(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_comparison(_operator))
for _name, _operator in {"and": "And", "or": "Or", "xor": "Xor"}.items():
    lowers(f"aten.logical_{_name}.default", f"aten.bitwise_{_name}.Tensor", f"aten.__{_name}__.Tensor")(
        _comparison(_operator)
    )


@lowers("aten.ne.Tensor", "aten.ne.Scalar")
def unequal(graph: GraphBuilder, node: Node, left: Any, right: Any) -> ir.Value:
    return graph.op("Not", _comparison("Equal")(graph, node, left, right))


@lowers("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(graph: GraphBuilder, node: Node, condition: Any, chosen: Any, other: Any) -> ir.Value:
    dtype = dtype_of(node)
    values = [
        graph.constant(value, dtype.numpy().type) if isinstance(value, int | float) else graph.cast(value, dtype)
        for value in (chosen, other)
    ]
    return graph.op("Where", condition, *values, dtype=dtype)


@lowers("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(graph: GraphBuilder, node: Node, x: Any, mask: Any, filling: Any) -> ir.Value:
    return where(graph, node, mask, filling, x)


@lowers("aten.softmax.int", "aten.log_softmax.int")
def softmax(graph: GraphBuilder, node: Node, x: Any, axis: int, *unused: Any) -> ir.Value:
    return graph.op("LogSoftmax" if "log_softmax" in str(node.target) else "Softmax", x, axis=axis)


_REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}


def _reduction(name: str) -> Emit:
    def emitter(
        graph: GraphBuilder, node: Node, x: Any, axes: Any = None, keep: bool = False, **unused: Any
    ) -> ir.Value:
        chosen = [axes] if isinstance(axes, int) else list(axes or range(len(shape_of(node.args[0]))))
        return graph.op(name, graph.cast(x, dtype_of(node)), integers(graph, *chosen), keepdims=int(keep))

    return emitter


for _name, _operator in _REDUCTIONS.items():
    overloads = ("default", "dim", "dim_IntList")
    lowers(*(f"aten.{_name}.{overload}" for overload in overloads))(_reduction(_operator))


@lowers("aten.max.dim", "aten.min.dim")
def extreme(graph: GraphBuilder, node: Node, x: Any, axis: int, keep: bool = False) -> list[ir.Value]:
    """The values and where they stand."""
    kind = "Max" if "max" in str(node.target) else "Min"
    values = graph.op(f"Reduce{kind}", x, integers(graph, axis), keepdims=int(keep))
    return [values, graph.op(f"Arg{kind}", x, dtype=ir.DataType.INT64, axis=axis, keepdims=int(keep))]


@lowers("aten.max.default", "aten.min.default")
def extreme_of_all(graph: GraphBuilder, node: Node, x: Any) -> ir.Value:
    return graph.op("ReduceMax" if "max" in str(node.target) else "ReduceMin", x, keepdims=0)


@lowers("aten.argmax.default", "aten.argmin.default")
def position_of_extreme(
    graph: GraphBuilder, node: Node, x: Any, axis: int | None = None, keep: bool = False
) -> ir.Value:
    name = "ArgMax" if "argmax" in str(node.target) else "ArgMin"
    if axis is None:
        x, axis = graph.op("Reshape", x, integers(graph, -1)), 0
    return graph.op(name, x, dtype=ir.DataType.INT64, axis=axis, keepdims=int(keep))


@lowers("aten.var.dim", "aten.var.correction", "aten.std.dim", "aten.std.correction")
def spread(
    graph: GraphBuilder,
    node: Node,
    x: Any,
    axes: Any = None,
    unbiased: bool = True,
    keep: bool = False,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> ir.Value:
    """Variance or standard deviation over axes."""
    shape = shape_of(node.args[0])
    chosen = list(range(len(shape))) if axes is None else [axes] if isinstance(axes, int) else list(axes)
    count = int(np.prod([int(shape[axis]) for axis in chosen]))
    lost = float(unbiased) if correction is None else correction
    where_ = integers(graph, *chosen)
    away = graph.op("Sub", x, graph.op("ReduceMean", x, where_, keepdims=1))
    total = graph.op("ReduceSumSquare", away, where_, keepdims=int(keep or keepdim))
    result = graph.op("Div", total, graph.constant(count - lost, np.float32))
    return graph.op("Sqrt", result) if "std" in str(node.target) else result


@lowers("aten.linalg_vector_norm.default")
def vector_norm(
    graph: GraphBuilder, node: Node, x: Any, order: float = 2, axes: Any = None, keep: bool = False, **unused: Any
) -> ir.Value:
    name = {1.0: "ReduceL1", 2.0: "ReduceL2"}.get(float(order))
    if name is None:
        raise unsupported(node, f"order {order}", "1 or 2")
    chosen = [axes] if isinstance(axes, int) else list(axes or range(len(shape_of(node.args[0]))))
    return graph.op(name, x, integers(graph, *chosen), keepdims=int(keep))


@lowers("aten.cumsum.default")
def cumsum(graph: GraphBuilder, node: Node, x: Any, axis: int, **unused: Any) -> ir.Value:
    return graph.op("CumSum", graph.cast(x, dtype_of(node)), graph.constant(axis, np.int64))


@lowers(
    "aten.to.dtype",
    "aten.to.dtype_layout",
    "aten.to.device",
    "aten.to.other",
    "aten._to_copy.default",
    "aten.type_as.default",
)
def cast(graph: GraphBuilder, node: Node, x: Any, *unused: Any, **keywords: Any) -> ir.Value:
    return graph.cast(x, dtype_of(node))


_IN_PLACE = ("relu", "silu", "hardswish", "hardsigmoid", "leaky_relu", "elu", "hardtanh", "sigmoid", "tanh", "mish")


def _in_place(name: str) -> Emit:
    """An activation that overwrites its input is that activation: capture lets later readers of the input read this.

    It does not see that a view's tensor has changed too.
    """

    def emitter(graph: GraphBuilder, node: Node, x: Any, *arguments: Any) -> Any:
        source = node.all_input_nodes[0].target
        if isinstance(source, torch._ops.OpOverload) and any(
            result.alias_info and not result.alias_info.is_write for result in source._schema.returns
        ):
            raise unsupported(node, f"a view ({source})", "inplace=False")
        return TABLES["onnx"].emitters[f"aten.{name}.default"](graph, node, x, *arguments)

    return emitter


for _name in _IN_PLACE:
    lowers(f"aten.{_name}_.default")(_in_place(_name))
