"""From operations to steps: closures over numbered registers, with as little Python in each as can be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stages.runtimes.coreml_reference.operation import Operation, Signature, Translation
from stages.runtimes.coreml_reference.operators import Array
from stages.runtimes.coreml_reference.package import ProgramError
from stages.runtimes.coreml_reference.weights import Weight

if TYPE_CHECKING:
    from stages.runtimes.coreml_reference.constants import Constants

_SMALL_AT_A_TIME = 16
Registers = list[Any]
Step = Callable[[Registers], None]


@dataclass
class Compiled:
    """Steps over registers. `template`: the registers at the start, with the constants in their places."""

    inputs: Signature
    states: Signature
    outputs: dict[str, int]
    slots: dict[str, int]
    template: Registers
    steps: list[Step]
    names: list[str]

    def run(self, inputs: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        registers = self.template.copy()
        for name in self.inputs:
            registers[self.slots[name]] = inputs[name]
        for name in self.states:
            registers[self.slots[name]] = state[name]
        step: Step | None = None
        try:
            for step in self.steps:
                step(registers)
        except (RuntimeError, IndexError, ValueError) as cause:  # torch's, for shapes and indices
            name = self.names[self.steps.index(step)] if step else "the program"
            raise ProgramError(
                f"{name} cannot be computed: {str(cause).partition(chr(10))[0]}",
                hint="Sizes or indices that depend on the inputs may not fit each other.",
            ) from cause
        return {name: registers[slot] for name, slot in self.outputs.items()}


def compile_steps(program: Translation, constants: "Constants") -> Compiled:
    """Lay the program's values out in registers, and turn its operations into steps."""
    layout = _Layout(program, constants)
    dying = _dying(program)
    for index, operation in enumerate(program.operations):
        if not operation.skip:
            layout.add(operation)
        if dying[index]:
            layout.release(dying[index])
    outputs = {name: layout.slot(name, program.constants.get(name)) for name in program.outputs}
    return Compiled(program.inputs, program.states, outputs, layout.slots, layout.template, layout.steps, layout.names)


class _Layout:
    """Registers and steps as they grow. A float16 value that wide kernels read has a second register, in float32."""

    def __init__(self, program: Translation, constants: "Constants"):
        self.slots: dict[str, int] = {}
        self.template: Registers = []
        self.steps: list[Step] = []
        self.names: list[str] = []
        self._dead: list[str] = []
        self._program, self._constants = program, constants
        for name in [*program.inputs, *program.states]:
            self.slot(name)

    def slot(self, name: str, value: Any = None) -> int:
        if name not in self.slots:
            self.slots[name] = len(self.template)
            self.template.append(value)
        return self.slots[name]

    def add(self, operation: Operation) -> None:
        """Add the steps of an operation."""
        function, unpacked = operation.kernel.function, {}
        if operation.copies:
            function = torch.clone
        elif operation.in_place and operation.kernel.in_place is not None:
            function = operation.kernel.in_place
        sources = []
        for place, name in enumerate(operation.sources):
            weight = self._program.constants.get(name)
            if not isinstance(weight, Weight):
                sources.append(self._tensor_slot(name, operation.kernel.wide))
                continue
            dense = None if _taken_apart(operation, place, weight) else self._resident(weight, operation)
            if dense is not None:
                sources.append(self.slot(f"{name}, {dense.dtype}", dense))
                continue
            sources.append(self.slot(name, weight))
            if operation.kernel.packed is not None and operation.kernel.packed_at == place and weight.by_rows:
                function = operation.kernel.packed
            else:
                unpacked[place] = self._constants.dtype_of(weight, operation.kernel.wide)
        if unpacked:
            function = _unpacking(function, unpacked)
        dtypes = [self._program.dtypes[name] for name in operation.sinks]
        rounded_to = dtypes if operation.kernel.wide else []
        step = _step(function, sources, [self.slot(name) for name in operation.sinks], rounded_to)
        self._append(
            step, f"operation '{operation.sinks[0] if operation.sinks else operation.state}' ({operation.kind})"
        )

    def release(self, names: list[str]) -> None:
        """Forget values after this step, so that their memory can be used again: small ones many at a time."""
        self._dead += names
        if len(self._dead) >= _SMALL_AT_A_TIME or not self._program.large.isdisjoint(names):
            forms = [form for name in self._dead for form in (name, _wide(name)) if form in self.slots]
            self._append(_release([self.slots[form] for form in forms]), "")
            self._dead.clear()

    def _append(self, step: Step, name: str) -> None:
        self.steps.append(step)
        self.names.append(name)

    def _tensor_slot(self, name: str, wide: bool) -> int:
        if name in self._program.constants:
            value = self._program.constants[name]
            widened = self._constants.wide(value) if wide else value
            return self.slot(name, value) if widened is value else self.slot(_wide(name), widened)
        if not wide or self._program.dtypes.get(name) != torch.float16:
            return self.slots[name]
        if _wide(name) not in self.slots:
            source, sink = self.slots[name], self.slot(_wide(name))
            self._append(_step(torch.Tensor.float, [source], [sink], []), f"the value '{name}'")
        return self.slots[_wide(name)]

    def _resident(self, weight: Weight, operation: Operation) -> torch.Tensor | None:
        return self._constants.resident(weight, operation.kernel.wide)


def _wide(name: str) -> str:
    return f"{name}, float32"


def _taken_apart(operation: Operation, place: int, weight: Weight) -> bool:
    """Whether the kernel is given the weight itself though there may be memory for it dense."""
    kernel = operation.kernel
    return kernel.packed is not None and kernel.packed_at == place and not kernel.packed_late and weight.by_rows


def _unpacking(function: Array, places: dict[int, torch.dtype]) -> Array:
    """The function, with the weights at these places unpacked for each call."""

    def run(*values: Any) -> Any:
        return function(
            *(value.dense(places[place]) if place in places else value for place, value in enumerate(values))
        )

    return run


def _dying(program: Translation) -> list[list[str]]:
    """For each operation, the computed values that no later one reads."""
    last: dict[str, int] = {}
    for index, operation in enumerate(program.operations):
        last.update(dict.fromkeys(operation.sinks, index))
        last.update({name: index for name in operation.sources if name in last})
    dying: list[list[str]] = [[] for _ in program.operations]
    for name, index in last.items():
        if name not in program.outputs:
            dying[index].append(name)
    return dying


def _step(function: Array, sources: list[int], sinks: list[int], dtypes: list[torch.dtype]) -> Step:
    """dtypes: of the results where they are to be rounded to them; empty: they have them."""
    if len(sinks) != 1:
        return _step_to_many(function, sources, sinks, dtypes)
    if dtypes and dtypes[0] == torch.float16:
        return _rounding_step(function, sources, sinks[0])
    if dtypes and dtypes[0] != torch.float32:
        wide, dtype = function, dtypes[0]

        def function(*values: Any) -> Any:
            return wide(*values).to(dtype)

    (sink,) = sinks
    if len(sources) == 1:
        (only,) = sources

        def step(registers: Registers) -> None:
            registers[sink] = function(registers[only])

    elif len(sources) == 2:
        first, second = sources

        def step(registers: Registers) -> None:
            registers[sink] = function(registers[first], registers[second])

    elif len(sources) == 3:
        first, second, third = sources

        def step(registers: Registers) -> None:
            registers[sink] = function(registers[first], registers[second], registers[third])

    else:

        def step(registers: Registers) -> None:
            registers[sink] = function(*[registers[source] for source in sources])

    return step


def _rounding_step(function: Array, sources: list[int], sink: int) -> Step:
    if len(sources) == 1:
        (only,) = sources

        def step(registers: Registers) -> None:
            registers[sink] = function(registers[only]).half()

    elif len(sources) == 2:
        first, second = sources

        def step(registers: Registers) -> None:
            registers[sink] = function(registers[first], registers[second]).half()

    else:

        def step(registers: Registers) -> None:
            registers[sink] = function(*[registers[source] for source in sources]).half()

    return step


def _step_to_many(function: Array, sources: list[int], sinks: list[int], dtypes: list[torch.dtype]) -> Step:
    """For several results, as of split; for none, as of write_state."""

    def step(registers: Registers) -> None:
        results = function(*[registers[source] for source in sources])
        for sink, result in zip(sinks, results, strict=False):
            registers[sink] = result
        for sink, dtype in zip(sinks, dtypes, strict=False):
            registers[sink] = registers[sink].to(dtype)

    return step


def _release(slots: list[int]) -> Step:
    """Forget values, so that their memory can be used again."""

    def step(registers: Registers) -> None:
        for slot in slots:
            registers[slot] = None

    return step
