"""The operator table: for each MIL operator, a rule that turns one call of it into a torch function.

A rule is given the call (its constant arguments, the types of the others) and returns a Kernel, once, at compile time.
Register more with

    @operator("my_operator")
    def my_operator(call: Call) -> Kernel:
        return Kernel(torch.something, ("x", "y"))

Definitions: coremltools, converters/mil/mil/ops/defs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.runtimes.coreml_reference.package import ProgramError
from stages.runtimes.coreml_reference.weights import whole

Array = Callable[..., Any]
_REQUIRED = object()
DTYPES = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class Kernel:
    """function: torch tensors in, a tensor (or a tuple of them) out. operands: the arguments that it takes, in order.

    wide: computed in float32 and rounded once, at the end; otherwise in the declared type, where torch rounds once too.
    view: the result may share memory with the first operand. in_place: the same function, changing its first operand.
    packed: the same function, given a Weight (weights.py) for the operand number `packed_at`, which it takes apart;
    used for large constants: always, or, where `packed_late`, only where there is no memory to keep them dense.
    """

    function: Array
    operands: Sequence[str]
    wide: bool = False
    view: bool = False
    in_place: Array | None = None
    packed: Array | None = None
    packed_at: int = 0
    packed_late: bool = False


@dataclass(frozen=True)
class Call:
    """One operation of a program. `constants` holds the arguments known at compile time, `names` all that are given."""

    type: str
    name: str
    names: frozenset[str]
    constants: dict[str, Any]
    ranks: dict[str, int]
    dtypes: dict[str, torch.dtype]
    float16: torch.dtype

    def has(self, argument: str) -> bool:
        return argument in self.names

    def dtype(self, argument: str) -> torch.dtype:
        """The dtype in which the executor holds an argument."""
        return self.dtypes[argument]

    def given(self, *arguments: str) -> tuple[str, ...]:
        """Those of the arguments that the call has."""
        return tuple(argument for argument in arguments if argument in self.names)

    def static(self, argument: str, default: Any = _REQUIRED) -> Any:
        """A constant argument as plain Python. Raises ProgramError where it is computed by the program."""
        if argument not in self.names and default is not _REQUIRED:
            return default
        if argument not in self.constants:
            raise ProgramError(
                f"operation '{self.name}' ({self.type}): argument '{argument}' must be a constant",
                hint="The reference executor supports this operator with that argument fixed.",
            )
        value = self.constants[argument]
        value = whole(value)
        return value.tolist() if isinstance(value, torch.Tensor) else value


Rule = Callable[[Call], Kernel]
OPERATORS: dict[str, Rule] = {}


def operator(*names: str) -> Callable[[Rule], Rule]:
    """Decorator: the rule for these MIL operators."""

    def add(rule: Rule) -> Rule:
        OPERATORS.update(dict.fromkeys(names, rule))
        return rule

    return add


def _simple(function: Array, *operands: str, wide: bool = False, view: bool = False) -> Rule:
    kernel = Kernel(function, operands, wide=wide, view=view)
    return lambda call: kernel


def _divide(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="floor")


def _floor_divide(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.div(x, y, rounding_mode="floor")


_BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": _divide,
    "floor_div": _floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}
_UNARY = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": torch.nn.functional.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softsign": torch.nn.functional.softsign,
    "sqrt": torch.sqrt,
    "square": lambda x: x * x,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_WIDE = {
    "acos",
    "asin",
    "atan",
    "cos",
    "cosh",
    "erf",
    "floor_div",
    "sin",
    "sinh",
    "softsign",
    "sqrt",
    "tan",
}  # torch's float16 versions round more than once
for _name, _function in _BINARY.items():
    operator(_name)(_simple(_function, "x", "y", wide=_name in _WIDE))
for _name, _function in _UNARY.items():
    operator(_name)(_simple(_function, "x", wide=_name in _WIDE))
operator("select")(_simple(torch.where, "cond", "a", "b"))
operator("identity")(_simple(lambda x: x, "x", view=True))


@operator("rsqrt")
def rsqrt(call: Call) -> Kernel:
    epsilon = call.static("epsilon", 1e-12)
    return Kernel(lambda x: torch.rsqrt(x + epsilon), ("x",), wide=True)


@operator("atanh")
def atanh(call: Call) -> Kernel:
    return Kernel(torch.atanh, ("x",), wide=True)


@operator("inverse")
def inverse(call: Call) -> Kernel:
    epsilon = call.static("epsilon", 1e-4)
    return Kernel(lambda x: 1 / (x + epsilon), ("x",), wide=True)


@operator("log")
def log(call: Call) -> Kernel:
    epsilon = call.static("epsilon", 1e-45)
    return Kernel(lambda x: torch.log(x + epsilon), ("x",), wide=True)


@operator("clip")
def clip(call: Call) -> Kernel:
    low, high = call.static("alpha"), call.static("beta")
    return Kernel(lambda x: x.clamp(low, high), ("x",))


@operator("cast")
def cast(call: Call) -> Kernel:
    name = call.static("dtype")
    dtype = call.float16 if name == "fp16" else DTYPES[name]
    return Kernel(lambda x: x.to(dtype), ("x",), view=True)


_REDUCTIONS: dict[str, Array] = {
    "reduce_mean": torch.mean,
    "reduce_sum": torch.sum,
    "reduce_prod": lambda x, axes, keepdim: _product(x, axes, keepdim),
    "reduce_l2_norm": lambda x, axes, keepdim: x.square().sum(axes, keepdim).sqrt(),
    "reduce_l1_norm": lambda x, axes, keepdim: x.abs().sum(axes, keepdim),
    "reduce_sum_square": lambda x, axes, keepdim: x.square().sum(axes, keepdim),
    "reduce_log_sum": lambda x, axes, keepdim: x.sum(axes, keepdim).log(),
    "reduce_log_sum_exp": torch.logsumexp,
}


def _product(x: torch.Tensor, axes: Sequence[int], keepdim: bool) -> torch.Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim)
    return x


def _reduction(function: Array, wide: bool = True) -> Rule:
    def rule(call: Call) -> Kernel:
        axes = call.static("axes", list(range(call.ranks["x"])))
        keep = bool(call.static("keep_dims", False))
        return Kernel(lambda x: function(x, axes, keep), ("x",), wide=wide)

    return rule


for _name, _function in _REDUCTIONS.items():
    operator(_name)(_reduction(_function))


operator("reduce_max")(_reduction(torch.amax, wide=False))
operator("reduce_min")(_reduction(torch.amin, wide=False))


@operator("reduce_argmax", "reduce_argmin")
def arg_extreme(call: Call) -> Kernel:
    axis, keep = call.static("axis", -1), bool(call.static("keep_dims", False))
    function = torch.argmax if call.type == "reduce_argmax" else torch.argmin
    return Kernel(lambda x: function(x, axis, keep).int(), ("x",))


@operator("cumsum")
def cumsum(call: Call) -> Kernel:
    axis, exclusive, reverse = (
        call.static("axis", 0),
        call.static("exclusive", False),
        call.static("reverse", False),
    )

    def function(x: torch.Tensor) -> torch.Tensor:
        x = x.flip(axis) if reverse else x
        total = x.cumsum(axis)
        if exclusive:
            total = torch.cat(
                [torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, x.shape[axis] - 1)], axis
            )
        return (total.flip(axis) if reverse else total).to(x.dtype)

    return Kernel(function, ("x",), wide=True)
