"""One MIL function under construction: what every emitter is given as `context`."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Operation, Var, types
from numpy.typing import NDArray
from torch.fx import Node

from stages.lowering.coreml.weights import Rows, Variant, WeightBank, identifier
from stages.lowering.graph import Constant, Emitter, Weight, source_line
from stages.lowering.limits import MINIMUM_OS

TARGET = getattr(ct.target, f"iOS{MINIMUM_OS['iOS']}")
FLOATS = {"float16": types.fp16, "float32": types.fp32}
_DTYPES = {**FLOATS, "int32": types.int32}
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
        self.spec, self.context, self.head_width, self._bank = spec, context, head_width, bank
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
        """Emit a node of the captured graph, and note the line of the model that its operations came from."""
        result = self.caller(node, emitter, arguments, keywords)
        line = source_line(node)
        for operation in self._new_operations():
            self.lines[operation.name] = line
        return result

    def plainly(self, node: Node, emitter: Emitter, arguments: Any, keywords: Any) -> Any:
        return emitter(self, node, *arguments, **keywords)

    def finish(self, outputs: list[Var]) -> None:
        """Name the function's outputs, in the order of the spec."""
        for name, var in zip(self.spec.outputs, outputs, strict=True):
            var.set_name(name)
        self.function.set_outputs(outputs)

    def fp16(self, name: str) -> Var:
        """The input of that name, as float16."""
        return mb.cast(x=self.inputs[name], dtype="fp16", name=f"{name}_fp16")

    def number(self, value: float) -> np.float16 | np.float32:
        """A number in the dtype that the node at hand is computed in."""
        return np.float32(value) if self.dtype == "float32" else np.float16(value)

    def weight(self, weight: Weight, rows: Rows | None = None) -> Var:
        """A parameter of the model, as a constexpr operation where it is quantized. Once a function."""
        variant = Variant(rows, self.dtype, self.exponents.get(weight.name, 0))
        key = weight.name + variant.suffix
        if key not in self._weights:
            self._weights[key] = self._bank.emit(weight.name, weight.shape, variant)
            self.uses[identifier(key)] = Use(weight.name, rows)
        return self._weights[key]

    def constant(self, key: str, make: Callable[[], NDArray[Any]]) -> Var:
        """A constant that the functions of a package share; equal keys must mean equal values."""
        return self.once(("constant", key), lambda: self._bank.constant(key, make))

    def literal(self, constant: Constant) -> Var:
        """A tensor that the model makes itself, in a dtype that MIL has."""
        array = np.asarray(constant.array)
        dtype = self.dtype if array.dtype.kind == "f" else "bool" if array.dtype == bool else "int32"
        key = f"{constant.name}.{dtype}"
        if array.ndim == 0 or array.dtype == bool:
            return self.once(("literal", key), lambda: mb.const(val=array.astype(dtype)))
        return self.constant(key, lambda: array.astype(dtype))

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
