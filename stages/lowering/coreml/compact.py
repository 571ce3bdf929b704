"""Makes an ML program small: a constant is said once a function, and only weights have long names.

coremltools writes a constant for each argument of each operation (the strides of every convolution), and each name
three times: of the reference model's decoder, 63 KB of 168 KB of program, beside 550 KB of weights.
"""

from collections.abc import Set
from itertools import count
from typing import Any

from coremltools.proto import MIL_pb2


def compact(function: MIL_pb2.Function, weights: Set[str]) -> dict[str, str]:
    """Share equal constants of the function, and number its values: v0, v1, ...

    Features keep their names. So do the operations named in `weights`; the values that they make are numbered.
    Returns the operations' new names by their old ones.
    """
    block = function.block_specializations[function.opset]
    names = {name: name for name in [*(feature.name for feature in function.inputs), *block.outputs]}
    numbered = (f"v{number}" for number in count())
    constants: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for operation in block.operations:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "name":
                    binding.name = names[binding.name]
        before = operation_name(operation)
        is_weight = before in weights
        if operation.type == "const" and not is_weight and operation.outputs[0].name not in names:
            value = operation.attributes["val"].SerializeToString(deterministic=True)
            if value in constants:
                names[operation.outputs[0].name] = constants[value]
                continue
            constants[value] = names[operation.outputs[0].name] = next(numbered)
        for output in operation.outputs:
            name = names.get(output.name) or next(numbered)
            names[output.name], output.name = name, name
        if not is_weight:
            _texts(operation)[0] = operation.outputs[0].name if operation.outputs else next(numbered)
        renamed[before] = operation_name(operation)
        kept.append(operation.SerializeToString(deterministic=True))
    del block.operations[:]
    block.operations.extend(map(MIL_pb2.Operation.FromString, kept))
    return renamed


def operation_name(operation: Any) -> str:
    """What an operation is called; where it makes a weight, that is the weight's name as `identifier` writes it."""
    return str(_texts(operation)[0])


def _texts(operation: Any) -> Any:
    return operation.attributes["name"].immediateValue.tensor.strings.values
