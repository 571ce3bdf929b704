"""Compiles a function of an ML program into a list of steps, and runs it.

A step is a closure over numbered registers: it reads some, calls torch, writes one. Everything that does not change is
done at compile time: constants unpacked, compressed weights made dense, arguments made plain Python, operations on
constants folded. Arithmetic is float16 as the program declares it: each operation is rounded once, at its end; products
and sums accumulate in float32, whose copies of constant weights are made once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import nearest
from stages.runtimes.coreml_reference.constants import Constants
from stages.runtimes.coreml_reference.package import Package, ProgramError
from stages.runtimes.coreml_reference.states import plan_states
from stages.runtimes.coreml_reference.steps import compile_steps
from stages.runtimes.coreml_reference.translate import translate

State = dict[str, torch.Tensor]
PRECISIONS = {"float16": torch.float16, "float32": torch.float32}


class MLProgram:
    """An .mlpackage, ready to run.

    precision: "float16" rounds as the program's types say; "float32" computes everything that is float16 in float32.
    Raises ProgramError for a package that is damaged or holds no ML program.
    """

    def __init__(self, path: Path | str, *, precision: str = "float16", memory_mib: int = 2000):
        if precision not in PRECISIONS:
            raise ProgramError(f"precision is '{precision}'; expected {' or '.join(PRECISIONS)}")
        self.package = Package(Path(path))
        self.constants = Constants(self.package, PRECISIONS[precision], memory_mib)
        self._functions: dict[str, Function] = {}

    @property
    def description(self) -> Any:
        """The package's ModelDescription proto."""
        return self.package.model.description

    @property
    def functions(self) -> list[str]:
        return sorted(self.package.model.mlProgram.functions)

    def function(self, name: str | None = None) -> "Function":
        """The function of that name (None: the default one), compiled when first asked for.

        Raises ProgramError for a function that is not there, or with operators that the table lacks: all are named.
        """
        name = name or self.description.defaultFunctionName or "main"
        if name not in self.functions:
            raise ProgramError(
                f"{self.package.path} has no function '{name}'",
                hint=f"{nearest(name, self.functions)} Functions: {', '.join(self.functions)}.",
            )
        if name not in self._functions:
            self._functions[name] = Function(name, self.package, self.constants)
        return self._functions[name]

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, NDArray[Any]]:
        """Run the default function."""
        return self.function().predict(inputs, state)

    def new_state(self) -> State:
        return self.function().new_state()


class Function:
    """One compiled function. `inputs` and `states`: name -> (shape, dtype); -1 in a shape is any size."""

    def __init__(self, name: str, package: Package, constants: "Constants"):
        self.name = name
        program = translate(name, package, constants)
        plan_states(program.operations, program.outputs)
        self._compiled = compile_steps(program, constants)
        self.inputs, self.states = self._compiled.inputs, self._compiled.states

    @property
    def outputs(self) -> list[str]:
        return list(self._compiled.outputs)

    def new_state(self) -> State:
        """Zeros for every state. Functions of a package that declare the same states may share one."""
        return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self.states.items()}

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, NDArray[Any]]:
        """inputs: name -> array or tensor. state: from `new_state`, changed in place; None starts from zeros.

        Returns name -> array, in the dtypes that the program declares. Raises ProgramError for inputs that do not fit.
        """
        tensors = {name: self._input(name, inputs) for name in self.inputs}
        unknown = set(inputs) - set(tensors)
        if unknown:
            raise self._misfit(f"has no input '{sorted(unknown)[0]}'")
        with torch.inference_mode():
            results = self._compiled.run(tensors, self.new_state() if state is None else state)
        return {name: result.numpy() for name, result in results.items()}

    def _input(self, name: str, inputs: Mapping[str, Any]) -> torch.Tensor:
        shape, dtype = self.inputs[name]
        if name not in inputs:
            raise self._misfit(f"needs the input '{name}'")
        value = inputs[name]
        tensor = (value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))).to(dtype)
        fits = len(tensor.shape) == len(shape) and all(
            wanted in (-1, size) for size, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            raise self._misfit(f"needs '{name}' of shape {shape}, and was given {tuple(tensor.shape)}")
        return tensor

    def _misfit(self, what: str) -> ProgramError:
        return ProgramError(f"function '{self.name}' {what}", hint=f"Inputs: {', '.join(self.inputs)}.")
