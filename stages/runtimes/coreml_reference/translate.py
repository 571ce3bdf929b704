"""From a function's protobuf to operations with kernels: constants unpacked, operations on constants folded."""

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from pipelines.errors import nearest
from stages.runtimes.coreml_reference import (  # noqa: F401  (their rules register themselves)
    activations,
    images,
    layers,
    recurrent,
    scatter,
    tensors,
)
from stages.runtimes.coreml_reference.constexpr import CONSTEXPR
from stages.runtimes.coreml_reference.control import CONTROL, control, operations_of
from stages.runtimes.coreml_reference.operation import Operation, Signature, Translation
from stages.runtimes.coreml_reference.operators import DTYPES, OPERATORS, Call, Kernel
from stages.runtimes.coreml_reference.package import Package, UnknownOperatorError, shape_of, type_names

if TYPE_CHECKING:
    from stages.runtimes.coreml_reference.constants import Constants

_LARGE = 1 << 16  # numbers
STATE_OPERATORS = ("read_state", "write_state", "coreml_update_state")


def translate(name: str, package: Package, constants: "Constants") -> Translation:
    """Raises ProgramError where operators are missing from the table, naming them all."""
    function = package.model.mlProgram.functions[name]
    block = function.block_specializations[function.opset]
    _check_operators(package, name)
    program = Translation(*_signature(function, constants.float16), outputs=list(block.outputs))
    for feature, (shape, dtype) in (program.inputs | program.states).items():
        program.dtypes[feature], program.ranks[feature] = dtype, len(shape)
    for operation in block.operations:
        _translate(operation, program, constants)
    return program


def _inner(block: Any, outer: Translation, constants: "Constants") -> Translation:
    """A block inside an operation; names are a function's, so that what is known of outer values serves it too."""
    inputs = {
        feature.name: (shape_of(feature.type.tensorType), _dtype(feature.type, constants.float16))
        for feature in block.inputs
    }
    program = Translation(
        inputs, {}, list(block.outputs), [], outer.constants, outer.stored, outer.dtypes, outer.ranks, outer.large
    )
    for feature, (shape, dtype) in inputs.items():
        program.dtypes[feature], program.ranks[feature] = dtype, len(shape)
    for operation in block.operations:
        _translate(operation, program, constants)
    return program


def evaluate(kernel: Kernel, values: list[Any], dtypes: list[torch.dtype]) -> list[Any]:
    """The results, in dtypes, of a kernel on tensors of the declared types: a wide one reads float32, rounds once."""
    if kernel.wide:
        values = [value.float() if value.dtype == torch.float16 else value for value in values]
    results = kernel.function(*values)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    return [result.to(dtype) for result, dtype in zip(results, dtypes, strict=True)] if kernel.wide else results


def signature(package: Package, name: str, float16: torch.dtype) -> tuple[Signature, Signature, list[str]]:
    """The inputs, the states and the names of the outputs of a function."""
    function = package.model.mlProgram.functions[name]
    return *_signature(function, float16), list(function.block_specializations[function.opset].outputs)


def operators_of(package: Package, name: str) -> dict[str, int]:
    """{operator: how often a function uses it}, without constants."""
    function = package.model.mlProgram.functions[name]
    used = Counter(each.type for each in operations_of(function.block_specializations[function.opset]))
    return {kind: used[kind] for kind in sorted(used) if kind != "const"}


def unknown_operators(package: Package, name: str) -> dict[str, list[str]]:
    """{operator that a function uses and the table lacks: the names of the values that it makes}."""
    function = package.model.mlProgram.functions[name]
    known = {"const", *STATE_OPERATORS, *OPERATORS, *CONSTEXPR, *CONTROL}
    missing: dict[str, list[str]] = {}
    for operation in operations_of(function.block_specializations[function.opset]):
        if operation.type not in known:
            missing.setdefault(operation.type, []).append(operation.outputs[0].name if operation.outputs else "?")
    return dict(sorted(missing.items()))


def _check_operators(package: Package, name: str) -> None:
    missing = unknown_operators(package, name)
    if missing:
        guess = nearest(next(iter(missing)), OPERATORS)
        raise UnknownOperatorError(
            f"{package.path}, function '{name}': the reference executor does not know "
            + ", ".join(f"{kind} (at {_places(places)})" for kind, places in missing.items()),
            hint=f"{guess + ' ' if guess else ''}Add a rule with @operator (coreml_reference/operators.py).",
        )


def _places(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _signature(function: Any, float16: torch.dtype) -> tuple[Signature, Signature]:
    inputs: Signature = {}
    states: Signature = {}
    for feature in function.inputs:
        is_state = feature.type.WhichOneof("type") == "stateType"
        kind = feature.type.stateType.wrappedType if is_state else feature.type
        (states if is_state else inputs)[feature.name] = (shape_of(kind.tensorType), _dtype(kind, float16))
    return inputs, states


def _dtype(kind: Any, float16: torch.dtype) -> torch.dtype:
    name = type_names()[kind.tensorType.dataType].lower().replace("float", "fp")
    return float16 if name == "fp16" else DTYPES.get(name, torch.int32)


def _translate(operation: Any, program: Translation, constants: "Constants") -> None:
    """Add an operation to the program: as a constant where all that it reads is constant, else to be run."""
    sinks = [output.name for output in operation.outputs]
    for output in operation.outputs:
        program.dtypes[output.name] = _dtype(output.type, constants.float16)
        shape = shape_of(output.type.tensorType)
        program.ranks[output.name] = len(shape)
        if -1 in shape or math.prod(shape) > _LARGE:
            program.large.add(output.name)
    if operation.type == "const":
        _add_constant(program, constants, sinks[0], constants.value(operation.attributes["val"]))
    elif operation.type.startswith("constexpr_"):
        for sink, value in zip(sinks, constants.constexpr(operation, program.stored), strict=True):
            _add_constant(program, constants, sink, value)
    else:
        bindings = {
            argument: [_bound(binding, program, constants) for binding in operation.inputs[argument].arguments]
            for argument in sorted(operation.inputs)
        }
        if operation.type in CONTROL:
            blocks = [_inner(block, program, constants) for block in operation.blocks]
            kernel, sources = control(operation.type, bindings, blocks, constants)
            program.operations.append(Operation(operation.type, kernel, sources, sinks))
        elif operation.type in STATE_OPERATORS:
            program.operations += _state_operations(operation.type, bindings, sinks)
        else:
            _translate_call(operation.type, bindings, sinks, program, constants)


def _add_constant(program: Translation, constants: "Constants", name: str, value: Any) -> None:
    program.stored[name], program.constants[name] = value, constants.native(value)


def _bound(binding: Any, program: Translation, constants: "Constants") -> str:
    """The name of what an argument is bound to; a literal becomes a constant with a name of its own."""
    if binding.WhichOneof("binding") == "name":
        return str(binding.name)
    name = f"literal {len(program.constants)}"
    value = constants.value(binding.value)
    _add_constant(program, constants, name, value)
    if binding.value.type.WhichOneof("type") == "tensorType":
        program.dtypes[name] = _dtype(binding.value.type, constants.float16)
    program.ranks[name] = len(value.shape) if hasattr(value, "shape") else 0
    return name


def _state_operations(kind: str, bindings: dict[str, list[str]], sinks: list[str]) -> list[Operation]:
    state = bindings["state" if "state" in bindings else "input"][0]
    operations = []
    if kind != "read_state":
        value = bindings["value" if "value" in bindings else "data"][0]
        write = Kernel(lambda held, new: held.copy_(new), ("state", "value"))
        operations.append(Operation("write_state", write, [state, value], [], state))
    if sinks:
        operations.append(
            Operation("read_state", Kernel(lambda held: held, ("state",), view=True), [state], sinks, state)
        )
    return operations


def _translate_call(
    kind: str, bindings: dict[str, list[str]], sinks: list[str], program: Translation, constants: "Constants"
) -> None:
    single = {argument: names[0] for argument, names in bindings.items() if len(names) == 1}
    call = Call(
        kind,
        sinks[0],
        frozenset(bindings),
        {argument: program.constants[name] for argument, name in single.items() if name in program.constants},
        {argument: program.ranks[names[0]] for argument, names in bindings.items() if names[0] in program.ranks},
        {argument: program.dtypes[name] for argument, name in single.items() if name in program.dtypes},
        constants.float16,
    )
    kernel = OPERATORS[kind](call)
    sources = [name for argument in kernel.operands for name in bindings[argument]]
    small = (isinstance(program.constants.get(source), torch.Tensor) for source in sources)
    if not all(small):
        program.operations.append(Operation(kind, kernel, sources, sinks))
        return
    values = [program.constants[source] for source in sources]
    with torch.inference_mode():
        results = evaluate(kernel, values, [program.dtypes[sink] for sink in sinks])
    program.constants.update(zip(sinks, results, strict=True))
