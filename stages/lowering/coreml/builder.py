"""One MIL function under construction: what every emitter is given as `context`."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Var, types
from numpy.typing import NDArray

from stages.lowering.coreml.weights import WeightBank
from stages.lowering.graph import Weight
from stages.lowering.limits import MINIMUM_OS

TARGET = getattr(ct.target, f"iOS{MINIMUM_OS['iOS']}")
_DTYPES = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32}
Feature = tuple[tuple[int, ...], str, str]  # shape, dtype, description


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


class FunctionBuilder:
    """The context of an emission. Within `with`, emitters call the MIL Builder (`mb`), which adds to this function.

    `inputs`: the function's input Vars by name. `context`: rows of the caches, 0 where there are none.
    """

    def __init__(self, spec: FunctionSpec, bank: WeightBank, *, context: int = 0):
        mb.name_count.clear()  # names, and so bytes, must not depend on what this process built before
        self.spec, self.context, self._bank = spec, context, bank
        placeholders = {
            name: mb.TensorSpec(shape, dtype=_DTYPES[dtype]) for name, (shape, dtype, _) in spec.inputs.items()
        } | {name: mb.StateTensorSpec(shape, dtype=types.fp16) for name, (shape, _, _) in spec.states.items()}
        self.function = Function(placeholders, TARGET)
        self.inputs: dict[str, Var] = self.function.inputs
        self.weights: dict[str, Var] = {}
        self._memo: dict[Hashable, Var] = {}
        self._caches: dict[str, Var] = {}

    def __enter__(self) -> "FunctionBuilder":
        self.function.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.function.__exit__(*error)

    def finish(self, outputs: list[Var]) -> None:
        """Name the function's outputs, in the order of the spec."""
        for name, var in zip(self.spec.outputs, outputs, strict=True):
            var.set_name(name)
        self.function.set_outputs(outputs)

    def fp16(self, name: str) -> Var:
        """The input of that name, as float16."""
        return mb.cast(x=self.inputs[name], dtype="fp16", name=f"{name}_fp16")

    def weight(self, weight: Weight) -> Var:
        """A parameter of the model, as a constexpr operation where it is quantized, else float16. Once a function."""
        if weight.name not in self.weights:
            self.weights[weight.name] = self._bank.emit(weight.name, weight.shape)
        return self.weights[weight.name]

    def constant(self, key: str, make: Callable[[], NDArray[Any]]) -> Var:
        """A constant that the functions of a package share; equal keys must mean equal values."""
        return self.once(("constant", key), lambda: self._bank.constant(key, make))

    def once(self, key: Hashable, make: Callable[[], Var]) -> Var:
        """What `make` emits, emitted once a function."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def value(self, argument: Any, dtype: Any = np.float16) -> Any:
        """An emitter's argument as an operand: a parameter as its Var, a Python number in `dtype`."""
        if isinstance(argument, Weight):
            return self.weight(argument)
        return dtype(argument) if isinstance(argument, bool | int | float) else argument

    def cache(self, state: str) -> Var:
        """The contents of a state after the updates so far."""
        if state not in self._caches:
            self._caches[state] = mb.read_state(input=self.inputs[state], name=f"{state}_before")
        return self._caches[state]

    def update_cache(self, state: str, contents: Var) -> Var:
        """Write a state; returns its contents."""
        self._caches[state] = mb.coreml_update_state(state=self.inputs[state], value=contents)
        return self._caches[state]
