"""An ML program that runs: compiled, function by function, into steps over torch tensors.

A step is a closure over numbered registers: it reads some, calls torch, writes one. What does not change is done at
compile time: arguments made plain Python, operations on constants folded, weights made dense as memory allows.
Arithmetic is float16 as the program declares it: each operation is rounded once, at its end; products and sums
accumulate in float32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import nearest
from stages.runtimes.coreml_reference.constants import Constants
from stages.runtimes.coreml_reference.features import describe_features
from stages.runtimes.coreml_reference.package import Package, ProgramError
from stages.runtimes.coreml_reference.states import plan_states
from stages.runtimes.coreml_reference.steps import compile_steps
from stages.runtimes.coreml_reference.translate import operators_of, signature, translate, unknown_operators

State = dict[str, torch.Tensor]
PRECISIONS = {"float16": torch.float16, "float32": torch.float32}


class MLProgram:
    """An .mlpackage, ready to run, behind the interface of coremltools' MLModel.

    function_name: the function that `predict` runs; None is the package's default. precision: "float16" rounds as the
    program's types say, "float32" computes everything that is float16 in float32. memory_mib: of dense copies of large
    weights; those beyond it stay packed and are unpacked each time.
    Raises ProgramError for a package that is damaged or holds no ML program, or a function that it does not have.
    """

    def __init__(
        self,
        path: Path | str,
        function_name: str | None = None,
        *,
        precision: str = "float16",
        memory_mib: int = 2000,
    ):
        if precision not in PRECISIONS:
            raise ProgramError(f"precision is '{precision}'; expected {' or '.join(PRECISIONS)}")
        self.package = Package(Path(path))
        self.constants = Constants(self.package, PRECISIONS[precision], memory_mib)
        self._functions: dict[str, Function] = {}
        self.function_name = self._known(function_name or self.description.defaultFunctionName or "main")

    @property
    def description(self) -> Any:
        """The package's ModelDescription proto."""
        return self.package.model.description

    @property
    def functions(self) -> list[str]:
        return sorted(self.package.model.mlProgram.functions)

    def function(self, name: str | None = None) -> "Function":
        """The function of that name (None: the one that `predict` runs), compiled when first asked for.

        Raises UnknownOperatorError for one with operators that the table lacks: all are named.
        """
        name = self._known(name) if name else self.function_name
        if name not in self._functions:
            self._functions[name] = Function(name, self.package, self.constants)
        return self._functions[name]

    def predict(self, data: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """Run the function; see Function.predict."""
        return self.function().predict(data, state)

    def make_state(self) -> State:
        """Zeros for every state of the function."""
        return self.function().new_state()

    new_state = make_state

    def unknown_operators(self, name: str | None = None) -> dict[str, list[str]]:
        """{operator that the function uses and the table lacks: the names of the values that it makes}."""
        return unknown_operators(self.package, self._known(name) if name else self.function_name)

    def operators(self, name: str | None = None) -> dict[str, int]:
        """{operator: how often the function uses it}, without constants."""
        return operators_of(self.package, self._known(name) if name else self.function_name)

    def interface(self, name: str | None = None) -> "Interface":
        """The function's inputs, outputs and states, without compiling it."""
        return Interface(self.package, self._known(name) if name else self.function_name, self.constants.float16)

    def _known(self, name: str) -> str:
        if name not in self.functions:
            raise ProgramError(
                f"{self.package.path} has no function '{name}'",
                hint=f"{nearest(name, self.functions)} Functions: {', '.join(self.functions)}.".strip(),
            )
        return name


class Interface:
    """What a function takes and gives. `inputs` and `states`: name -> (shape, dtype); -1 in a shape is any size.

    features: the inputs with their flexible shapes, colours and defaults; images: the outputs that are images.
    """

    def __init__(self, package: Package, name: str, float16: torch.dtype):
        self.name = name
        self.inputs, self.states, self.outputs = signature(package, name, float16)
        self.features, self.images = describe_features(package, name, self.inputs)

    def tensors(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What a user gave, as the program takes it. Raises ProgramError where it does not fit."""
        for name in inputs:
            if name not in self.features:
                raise self._misfit(f"has no input '{name}'", nearest(name, self.features))
        tensors = {}
        for name, feature in self.features.items():
            if name in inputs:
                tensors[name] = feature.tensor(inputs[name])
            elif feature.default is not None:
                tensors[name] = torch.full(feature.example(), feature.default, dtype=feature.dtype)
            else:
                raise self._misfit(f"needs the input '{name}'")
        return tensors

    def _misfit(self, what: str, guess: str = "") -> ProgramError:
        described = "; ".join(f"{name} {feature.describe()}" for name, feature in self.features.items())
        return ProgramError(f"function '{self.name}' {what}", hint=f"{guess} Inputs: {described}.".strip())


class Function(Interface):
    """One compiled function."""

    def __init__(self, name: str, package: Package, constants: Constants):
        super().__init__(package, name, constants.float16)
        program = translate(name, package, constants)
        plan_states(program.operations, program.outputs)
        self._compiled = compile_steps(program, constants)

    def new_state(self) -> State:
        """Zeros for every state. Functions of a package that declare the same states may share one."""
        return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self.states.items()}

    def predict(self, data: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """data: name -> array or tensor; an image as PIL's, or uint8 (H, W, 3) red first, (H, W) if grayscale.

        state: from `new_state`, changed in place; None starts from zeros. Returns name -> array, in the dtypes that the
        program declares, or PIL image where it declares one. Raises ProgramError for inputs that do not fit.
        """
        tensors = self.tensors(data)
        with torch.inference_mode():
            results = self._compiled.run(tensors, self.new_state() if state is None else state)
        return {
            name: self.images[name].value(result) if name in self.images else result.numpy()
            for name, result in results.items()
        }
