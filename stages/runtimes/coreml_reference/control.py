"""cond and while_loop: operations that run the blocks in them."""

from typing import TYPE_CHECKING, Any

import torch

from stages.runtimes.coreml_reference.operators import Kernel
from stages.runtimes.coreml_reference.package import ProgramError
from stages.runtimes.coreml_reference.steps import Compiled, compile_steps

if TYPE_CHECKING:
    from stages.runtimes.coreml_reference.constants import Constants
    from stages.runtimes.coreml_reference.operation import Translation

CONTROL = ("cond", "while_loop")


def control(
    kind: str, bindings: dict[str, list[str]], blocks: "list[Translation]", constants: "Constants"
) -> tuple[Kernel, list[str]]:
    """The kernel of a cond (bound: pred) or a while_loop (bound: loop_vars), and the values that it reads, in order.

    blocks: translated; of a cond without inputs, of a while_loop condition and body, each taking the loop's variables.
    """
    own = bindings["pred" if kind == "cond" else "loop_vars"]
    taken = [list(block.inputs) for block in blocks]
    captured = sorted({name for block in blocks for name in _captured(block)})
    for block in blocks:
        block.inputs = dict.fromkeys([*block.inputs, *captured], ((), torch.float32))
    first, second = (compile_steps(block, constants) for block in blocks)

    def choose(pred: torch.Tensor, *outer: torch.Tensor) -> list[torch.Tensor]:
        return _run(first if bool(pred) else second, dict(zip(captured, outer, strict=True)))

    def loop(*values: torch.Tensor) -> list[torch.Tensor]:
        variables, outer = list(values[: len(own)]), dict(zip(captured, values[len(own) :], strict=True))
        while bool(_run(first, outer | dict(zip(taken[0], variables, strict=True)))[0]):
            variables = _run(second, outer | dict(zip(taken[1], variables, strict=True)))
        return variables

    function = choose if kind == "cond" else loop
    if len(second.outputs) == 1:
        return Kernel(lambda *values: function(*values)[0], ()), [*own, *captured]
    return Kernel(function, ()), [*own, *captured]


def _run(block: Compiled, values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(block.run(values, {}).values())


def _captured(block: "Translation") -> set[str]:
    """The values that a block reads and that are made outside it."""
    made = {*block.inputs, *block.constants}
    captured = set()
    for operation in block.operations:
        if operation.state:
            raise ProgramError(f"a block of a cond or while_loop uses the state '{operation.state}'")
        captured |= set(operation.sources) - made
        made |= set(operation.sinks)
    return captured | (set(block.outputs) - made)


def operations_of(block: Any) -> list[Any]:
    """A block's operations, and those of the blocks in them, each before the next."""
    found = []
    for operation in block.operations:
        found.append(operation)
        for inner in operation.blocks:
            found += operations_of(inner)
    return found
