"""One MIL function under construction: what every emitter is given as `context`."""

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Operation, Var, types
from numpy.typing import NDArray
from torch.fx import Node

from pipelines.errors import LoweringError
from stages.lowering.coreml.stored import FLOAT16_MAX, Rows, as_float16, identifier
from stages.lowering.coreml.weights import Variant, WeightBank
from stages.lowering.graph import Constant, Emitter, Weight, source_line
from stages.lowering.limits import MINIMUM_OS

TARGET = getattr(ct.target, f"iOS{MINIMUM_OS['iOS']}")
FLOATS = {"float16": types.fp16, "float32": types.fp32}
_DTYPES = {**FLOATS, "int32": types.int32}
LARGEST_RANK = 5
MASKED = -40000.0  # added to a score that must not count; -inf would make NaN on the Neural Engine
Feature = tuple[tuple[int, ...], str, str]  # shape, dtype, description
Caller = Callable[[Node, Emitter, Any, Any], Any]


@dataclass(frozen=True)
class FunctionSpec:
    """A function's interface: its features by name, each (shape, dtype, description). `states` are float16."""

    name: str
    summary: str
    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    states: dict[str, Feature] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For model.json."""
        kinds = {"inputs": self.inputs, "outputs": self.outputs, "states": self.states}
        return {"function": self.name} | {
            kind: {name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype, _) in features.items()}
            for kind, features in kinds.items()
        }


@dataclass(frozen=True)
class CacheLayer:
    """Stands for a cache among the graph's inputs: one layer of a state."""

    state: str
    layer: int


@dataclass(frozen=True)
class Use:
    """A tensor of the store in a function: which, and which rows of it (None: all)."""

    name: str
    rows: Rows | None


class FunctionBuilder:
    """The context of an emission. Within `with`, emitters call the MIL Builder (`mb`), which adds to this function.

    `inputs`: the function's input Vars by name. `context`: rows of the caches, 0 where there are none. `head_width`:
    the most rows that a linear layer which makes an output may have, 0 for any. `dtype`: what the node at hand is
    computed in, "float16" but where ranges.py decides otherwise. `peaks`: the largest |value| that a Var was seen to
    hold, where that is known. `lines`: the line of the model that each operation came from.
    """

    def __init__(self, spec: FunctionSpec, bank: WeightBank, *, context: int = 0, head_width: int = 0):
        mb.name_count.clear()  # names, and so bytes, must not depend on what this process built before
        self.spec, self.context, self.head_width, self.bank, self.store = spec, context, head_width, bank, bank.store
        placeholders = {
            name: mb.TensorSpec(shape, dtype=_DTYPES[dtype]) for name, (shape, dtype, _) in spec.inputs.items()
        } | {name: mb.StateTensorSpec(shape, dtype=types.fp16) for name, (shape, _, _) in spec.states.items()}
        self.function = Function(placeholders, TARGET)
        self.inputs: dict[str, Var] = self.function.inputs
        self.dtype = "float16"
        self.exponents: Mapping[str, int] = {}
        self.peaks: dict[Var, float] = {}
        self.uses: dict[str, Use] = {}
        self.lines: dict[str, str] = {}
        self.caller: Caller = self.plainly
        self._weights: dict[str, Var] = {}
        self._memo: dict[Hashable, Var] = {}
        self._caches: dict[str, Var] = {}
        self._last: Operation | None = None

    def __enter__(self) -> "FunctionBuilder":
        self.function.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.function.__exit__(*error)

    def call(self, node: Node, emitter: Emitter, arguments: Any, keywords: Any) -> Any:
        """Emit a node of the captured graph, and note the line of the model that its operations came from.

        What the model's code makes of constants alone (a mask, positions) is computed here, by torch.
        """
        if _foldable(node, arguments, keywords):
            return _folded(node, arguments, keywords)
        result = self.caller(node, emitter, arguments, keywords)
        line = source_line(node)
        for operation in self._new_operations():
            self.lines[operation.name] = line
            if any(output.rank > LARGEST_RANK for output in operation.outputs):
                raise LoweringError(
                    f"{line}: '{operation.op_type}' makes a tensor of more than {LARGEST_RANK} axes, the most that "
                    "Core ML has",
                    hint="Join axes before they are permuted.",
                )
        return result

    def plainly(self, node: Node, emitter: Emitter, arguments: Any, keywords: Any) -> Any:
        return emitter(self, node, *arguments, **keywords)

    def finish(self, outputs: list[Any]) -> None:
        """Name the function's outputs, in the order of the spec, which comes to hold their dtypes."""
        made: list[Var] = []
        for output in outputs:
            var = self.value(output)
            var = mb.cast(x=var, dtype="int32") if self.is_bool(var) else var
            fresh = var.op is not None and var.op.op_type != "const" and var not in made
            made.append(var if fresh else mb.identity(x=var))
        kinds = {types.builtin_to_string(mil): name for name, mil in _DTYPES.items()}
        features = {}
        for (name, (shape, _, text)), var in zip(self.spec.outputs.items(), made, strict=True):
            var.set_name(name)
            features[name] = (shape, kinds[types.builtin_to_string(var.dtype)], text)
        self.spec = replace(self.spec, outputs=features)
        self.function.set_outputs(made)

    @property
    def suffix(self) -> str:
        """What tells a constant's key in the dtype at hand from that in float16."""
        return "" if self.dtype == "float16" else f".{self.dtype}"

    def number(self, value: float) -> np.float16 | np.float32:
        """A number in the dtype that the node at hand is computed in; below float16's range it can only be a mask's."""
        value = MASKED if value < -FLOAT16_MAX else value
        return np.float32(value) if self.dtype == "float32" else np.float16(value)

    def positive(self, value: float) -> np.float16 | np.float32:
        """An epsilon: where float16 would round it to 0, its least number."""
        return max(self.number(value), np.float16(2.0**-24)) if value > 0 else self.number(value)

    def exact(self, weight: Weight, exponent: int) -> bool:
        """Whether a parameter times 2^exponent is float16 without a loss."""
        return self.bank.exact(weight.name, exponent)

    def array(self, values: NDArray[Any]) -> Var:
        """Numbers as a constant in the dtype at hand. Raises LoweringError where they are beyond its range."""
        typed = values.astype(np.float32) if self.dtype == "float32" else as_float16("computed here", values)
        return self._numbered(typed)

    def table(self, indices: NDArray[Any]) -> Var:
        """Integers as a constant."""
        return self._numbered(indices.astype(np.int32))

    def _numbered(self, array: NDArray[Any]) -> Var:
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes() + str((array.dtype, array.shape)).encode())
        return self.constant(f"made_{digest.hexdigest()[:16]}", lambda: array)

    def dense(self, argument: Any) -> NDArray[np.float64]:
        """The numbers of a parameter or a constant of the model, for what is computed of them at lowering."""
        if isinstance(argument, Weight):
            return self.bank.store.dense(argument.name).reshape(argument.shape).astype(np.float64)
        return np.asarray(argument.array, np.float64)

    def weight(self, weight: Weight, rows: Rows | None = None) -> Var:
        """A parameter of the model, as a constexpr operation where it is quantized. Once a function."""
        variant = Variant(rows, self.dtype, self.exponents.get(weight.name, 0))
        key = weight.name + variant.suffix
        if key not in self._weights:
            self._weights[key] = self.bank.emit(weight.name, weight.shape, variant)
            self.uses[identifier(key)] = Use(weight.name, rows)
        return self._weights[key]

    def constant(self, key: str, make: Callable[[], NDArray[Any]]) -> Var:
        """A constant that the functions of a package share; equal keys must mean equal values."""
        return self.once(("constant", key), lambda: self.bank.constant(key, make))

    def literal(self, constant: Constant) -> Var:
        """A tensor that the model makes itself, in a dtype that MIL has."""
        array = np.asarray(constant.array)
        dtype = self.dtype if array.dtype.kind == "f" else "bool" if array.dtype == bool else "int32"
        if array.dtype.kind == "f":
            array = np.where(array < -FLOAT16_MAX, MASKED, array)
            array = array if dtype == "float32" else as_float16(constant.name, array)
        array = array.astype(dtype)
        key = f"{constant.name}.{dtype}"
        if array.size < 10 or array.dtype == bool:
            return self.once(("literal", key, id(constant)), lambda: mb.const(val=array if array.ndim else array[()]))
        return self.constant(key, lambda: array)

    def once(self, key: Hashable, make: Callable[[], Var]) -> Var:
        """What `make` emits, emitted once a function."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def value(self, argument: Any, integer: bool = False) -> Any:
        """An emitter's argument as an operand: a tensor as its Var, a Python number in the node's dtype (or int32)."""
        if isinstance(argument, Weight):
            return self.weight(argument)
        if isinstance(argument, Constant):
            return self.literal(argument)
        if isinstance(argument, bool | int | float):
            return np.int32(argument) if integer else self.number(argument)
        return argument

    def operand(self, argument: Any, floating: bool) -> Any:
        """An argument as an operand of an operator whose result is floating, or integer; truth values count as 0, 1."""
        if isinstance(argument, Constant) and floating and np.asarray(argument.array).dtype.kind != "f":
            argument = Constant(f"{argument.name}_float", np.asarray(argument.array, np.float32))
        value = self.value(argument, not floating)
        if not isinstance(value, Var):
            return value
        if floating and value.dtype not in FLOATS.values():
            return mb.cast(x=value, dtype=self.mil_dtype)
        return mb.cast(x=value, dtype="int32") if not floating and self.is_bool(value) else value

    def converted(self, x: Var, dtype: torch.dtype) -> Var:
        """x in the dtype that stands for torch's."""
        wanted = self.mil_dtype if dtype.is_floating_point else "bool" if dtype == torch.bool else "int32"
        return x if types.builtin_to_string(x.dtype) == wanted else mb.cast(x=x, dtype=wanted)

    @property
    def mil_dtype(self) -> str:
        """MIL's name of the dtype at hand."""
        return {"float16": "fp16", "float32": "fp32"}[self.dtype]

    def as_bool(self, x: Any) -> Var:
        return x if self.is_bool(x) else mb.cast(x=x, dtype="bool")

    def is_bool(self, x: Any) -> bool:
        return isinstance(x, Var) and x.dtype == types.bool

    def is_integer(self, x: Any) -> bool:
        return isinstance(x, Var) and types.is_int(x.dtype)

    def cache(self, state: str) -> Var:
        """The contents of a state after the updates so far."""
        if state not in self._caches:
            self._caches[state] = mb.read_state(input=self.inputs[state], name=f"{state}_before")
        return self._caches[state]

    def update_cache(self, state: str, contents: Var) -> Var:
        """Write a state; returns its contents."""
        self._caches[state] = mb.coreml_update_state(state=self.inputs[state], value=contents)
        return self._caches[state]

    def _new_operations(self) -> list[Operation]:
        """Operations added since the last call, without constants. (The list is linked: walked from its end.)"""
        node, found = self.function.operations.end, []
        last = node.op if node else None
        while node is not None and node.op is not self._last:
            if node.op.op_type != "const":
                found.append(node.op)
            node = node.prev
        self._last = last
        return found


def _foldable(node: Node, arguments: Any, keywords: Any) -> bool:
    """Whether a node makes one tensor of fixed size, of constants and numbers alone."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape):
        return False
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return False
    leaves = torch.utils._pytree.tree_leaves([list(arguments), dict(keywords)])
    return all(
        isinstance(
            leaf, Constant | bool | int | float | str | torch.dtype | torch.device | torch.layout | torch.memory_format
        )
        or leaf is None
        for leaf in leaves
    )


def _folded(node: Node, arguments: Any, keywords: Any) -> Constant:
    def tensor(leaf: Any) -> Any:
        return torch.from_numpy(np.array(leaf.array)) if isinstance(leaf, Constant) else leaf

    given, named = torch.utils._pytree.tree_map(tensor, (list(arguments), dict(keywords)))
    return Constant(node.name, node.target(*given, **named).numpy())
