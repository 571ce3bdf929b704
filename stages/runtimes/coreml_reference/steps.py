"""From operations to steps: closures over numbered registers, with as little Python in each as can be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stages.runtimes.coreml_reference.operators import Array
from stages.runtimes.coreml_reference.translate import Operation, Signature, Translation, rounded

if TYPE_CHECKING:
    from stages.runtimes.coreml_reference.program import Constants

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

    def run(self, inputs: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        registers = self.template.copy()
        for name in self.inputs:
            registers[self.slots[name]] = inputs[name]
        for name in self.states:
            registers[self.slots[name]] = state[name]
        for step in self.steps:
            step(registers)
        return {name: registers[slot] for name, slot in self.outputs.items()}


def compile_steps(program: Translation, constants: "Constants") -> Compiled:
    """Lay the program's values out in registers, and turn its operations into steps."""
    slots: dict[str, int] = {}
    template: Registers = []

    def slot(name: str, value: Any = None) -> int:
        if name not in slots:
            slots[name] = len(template)
            template.append(value)
        return slots[name]

    def source_slot(operation: Operation, name: str) -> int:
        if name not in program.constants:
            return slots[name]
        value = program.constants[name]
        widened = constants.wide(value) if operation.kernel.wide else value
        return slot(name, value) if widened is value else slot(f"{name}, float32", widened)

    for name in [*program.inputs, *program.states]:
        slot(name)
    dying = _dying(program)
    steps = []
    for index, operation in enumerate(program.operations):
        if not operation.skip:
            sources = [source_slot(operation, name) for name in operation.sources]
            steps.append(_step(_function(operation, program), sources, [slot(name) for name in operation.sinks]))
        if dying[index]:
            steps.append(_release([slots[name] for name in dying[index]]))
    outputs = {name: slot(name, program.constants.get(name)) for name in program.outputs}
    return Compiled(program.inputs, program.states, outputs, slots, template, steps)


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


def _function(operation: Operation, program: Translation) -> Array:
    kernel = operation.kernel
    if operation.copies:
        return lambda held: held.clone()
    if operation.in_place and kernel.in_place is not None:
        return kernel.in_place
    halves = [name not in program.constants and program.dtypes[name] == torch.float16 for name in operation.sources]
    dtype = program.dtypes[operation.sinks[0]] if operation.sinks else torch.float32
    return rounded(kernel, halves, dtype)


def _step(function: Array, sources: list[int], sinks: list[int]) -> Step:
    if len(sinks) != 1:
        return _step_to_many(function, sources, sinks)
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


def _step_to_many(function: Array, sources: list[int], sinks: list[int]) -> Step:
    """For several results, as of split; for none, as of write_state."""

    def step(registers: Registers) -> None:
        results = function(*[registers[source] for source in sources])
        for sink, result in zip(sinks, results, strict=False):
            registers[sink] = result

    return step


def _release(slots: list[int]) -> Step:
    """Forget values, so that their memory can be used again."""

    def step(registers: Registers) -> None:
        for slot in slots:
            registers[slot] = None

    return step
