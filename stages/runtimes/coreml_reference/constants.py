"""The constants of a package, shared by its functions: which of them are dense in memory, and which stay packed."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipelines.errors import nearest
from stages.runtimes.coreml_reference.constexpr import CONSTEXPR
from stages.runtimes.coreml_reference.package import Package, ProgramError, shape_of, type_names
from stages.runtimes.coreml_reference.weights import Compressed, Stored, Weight, whole

_SMALL = 1 << 16  # values: what has no more is dense from the start
_BY_HAND = {"constexpr_lut_to_dense": "indices", "constexpr_sparse_to_dense": "mask"}  # packed by hand in iOS 16


class Constants:
    """float16: the dtype that stands for float16. memory_mib: of dense copies of large weights; beyond it they are
    unpacked each time that they are used."""

    def __init__(self, package: Package, float16: torch.dtype, memory_mib: int):
        self.float16 = float16
        self._package = package
        self._left = memory_mib << 20
        self._known: dict[Any, Any] = {}

    def value(self, value: Any) -> Any:
        """A Value proto, as a tensor, a string, a list, or a Weight; what lies in weight.bin is known once."""
        if value.WhichOneof("value") != "blobFileValue":
            return self._package.value(value)
        blob = value.blobFileValue
        key = (blob.fileName, blob.offset, value.type.SerializeToString(deterministic=True))
        return self._once(key, lambda: _dense_if_small(self._package.value(value)))

    def constexpr(self, operation: Any, known: Mapping[str, Any]) -> tuple[Any, ...]:
        """The results of a constexpr operation; `known`: the constants before it, by name."""
        if operation.type not in CONSTEXPR:
            raise ProgramError(
                f"{self._package.path} uses '{operation.type}', which the reference executor does not know",
                hint=f"{nearest(operation.type, CONSTEXPR)} It knows {', '.join(sorted(CONSTEXPR))}.",
            )
        arguments: dict[str, Any] = {}
        parts: list[Any] = [operation.type]
        for name in sorted(operation.inputs):
            binding = operation.inputs[name].arguments[0]
            if binding.WhichOneof("binding") == "name":
                arguments[name] = known[binding.name]
                parts.append((name, id(arguments[name])))
            else:
                arguments[name] = _dense_if_small(self._package.value(binding.value))
                parts.append((name, binding.value.SerializeToString(deterministic=True)))
        for name in sorted(operation.attributes):  # iOS 16 keeps the operands among the attributes
            if name != "name":
                arguments[name] = _dense_if_small(self._package.value(operation.attributes[name]))
                parts.append((name, operation.attributes[name].SerializeToString(deterministic=True)))

        # The arguments are kept: where one is freed, the next object may have its id, and would pass for it.
        held: tuple[Any, tuple[Any, ...]] = self._once(
            tuple(parts), lambda: (dict(arguments), self._results(operation, _by_hand(operation.type, arguments)))
        )
        return held[1]

    def _results(self, operation: Any, arguments: dict[str, Any]) -> tuple[Any, ...]:
        results = []
        for place, output in enumerate(operation.outputs):
            kind = output.type.tensorType
            dtype = {"FLOAT16": torch.float16, "FLOAT32": torch.float32}.get(type_names()[kind.dataType], torch.uint8)
            weight = Compressed(operation.type, arguments, place, shape_of(kind), dtype)
            results.append(weight.dense() if math.prod(weight.shape) <= _SMALL else weight)
        return tuple(results)

    def resident(self, weight: Weight, wide: bool) -> torch.Tensor | None:
        """The weight, dense (float16 as float32 where `wide`), or None where there is no memory left for it."""
        dtype = self.dtype_of(weight, wide)
        if (id(weight), dtype) not in self._known:
            mapped = isinstance(weight, Stored) and weight.dtype == dtype and weight.is_mapped
            size = 0 if mapped else math.prod(weight.shape) * dtype.itemsize
            if size > self._left:
                return None
            self._left -= size
        held: tuple[Any, torch.Tensor] = self._once((id(weight), dtype), lambda: (weight, weight.dense(dtype)))
        return held[1]

    def dtype_of(self, weight: Weight, wide: bool) -> torch.dtype:
        """The dtype in which an operator is given a weight."""
        if weight.dtype != torch.float16:
            return weight.dtype
        return torch.float32 if wide else self.float16

    def native(self, value: Any) -> Any:
        """A constant in the executor's dtype for float16."""
        if isinstance(value, torch.Tensor) and value.dtype == torch.float16 != self.float16:
            return value.to(self.float16)
        return value

    def wide(self, tensor: torch.Tensor) -> torch.Tensor:
        """A small constant in float32."""
        if tensor.dtype != torch.float16:
            return tensor
        found: tuple[Any, torch.Tensor] = self._once(("wide", id(tensor)), lambda: (tensor, tensor.float()))
        return found[1]

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def _dense_if_small(value: Any) -> Any:
    return value.dense() if isinstance(value, Stored) and math.prod(value.shape) <= _SMALL else value


def _by_hand(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """iOS 16's forms, whose codes are packed into bytes by hand, as iOS 18's: with `shape` gone."""
    if "shape" not in arguments or kind not in _BY_HAND:
        return arguments
    packed = arguments[_BY_HAND[kind]]
    shape = [int(size) for size in arguments["shape"]]
    stored = packed if isinstance(packed, Stored) else Stored(packed.reshape(-1).numpy(), packed.shape, "UINT8")
    changed = {name: value for name, value in arguments.items() if name != "shape"}
    if kind == "constexpr_lut_to_dense":
        entries = whole(arguments["lut"]).reshape(-1)
        changed["lut"] = entries.reshape(*[1] * len(shape), -1, 1)
        bits = len(entries).bit_length() - 1
    else:
        bits = 1
    return changed | {_BY_HAND[kind]: stored.reinterpreted(shape, bits)}
