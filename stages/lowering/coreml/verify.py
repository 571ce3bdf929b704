"""Holds a saved package against the store: formats, bits, bytes. A compiler that quietly skips weights is caught."""

import math
from pathlib import Path
from typing import Any

from coremltools.proto import MIL_pb2

from pipelines.errors import LoweringError
from stages.lowering.coreml.builder import FunctionBuilder, Use
from stages.lowering.coreml.compact import operation_name
from stages.lowering.coreml.weights import Variant, WeightBank
from stages.quantizers.store import TensorFormat

SIZE_TOLERANCE = 0.10
RECORD_OVERHEAD = 128  # of weight.bin: 64 bytes before each tensor, and the padding of its data to 64
_BITS = {
    **{getattr(MIL_pb2, f"{sign}INT{bits}"): bits for bits in (4, 8) for sign in ("", "U")},
    **{getattr(MIL_pb2, f"UINT{bits}"): bits for bits in (1, 2, 3, 6)},
}
_PARTS = ("data", "scale", "offset", "indices", "channel_scales", "mask", "values")  # tables may be split: see below
_IN_PLACE = 10  # elements from which on coremltools writes a constant to weight.bin
_DENSE = {"affine": ("constexpr_blockwise_shift_scale", "data"), "palette": ("constexpr_lut_to_dense", "indices")}
_SPARSE = {
    "float": ("", "mask", "nonzero_data"),
    "affine": ("constexpr_sparse_blockwise_shift_scale", "data_mask", "nonzero_data"),
    "palette": ("constexpr_lut_to_sparse", "indices_mask", "indices_nonzero_data"),
}
_CODES = ("mask", "data_mask", "indices_mask", "data", "nonzero_data", "indices", "indices_nonzero_data")


def verify_package(path: Path, spec: Any, builders: list[FunctionBuilder], bank: WeightBank) -> None:
    """Raises LoweringError where a quantized tensor is no constexpr of its bits, or weight.bin weighs 10 % more
    than all of them (only where every tensor is tiny may it be as much as its headers are)."""
    for builder in builders:
        function = spec.mlProgram.functions[builder.spec.name]
        operations = function.block_specializations[function.opset].operations
        named = {operation_name(operation): operation for operation in operations}
        makers = {output.name: operation for operation in operations for output in operation.outputs}
        for identifier, use in builder.uses.items():
            operation = named.get(identifier)
            found = "nothing" if operation is None else _found(operation, makers)
            _verify_tensor(path, builder.spec.name, use, found, bank)
    _verify_size(path, builders, bank)


def _verify_tensor(path: Path, function: str, use: Use, found: str, bank: WeightBank) -> None:
    expected = _expected(bank, use)
    if found != expected:
        raise LoweringError(
            f"{path.name}, function '{function}': tensor '{use.name}' was saved as {found}, expected {expected}",
            hint="This is a fault of the lowering, or of the version of coremltools; nothing was shipped.",
        )


def _found(operation: Any, makers: dict[str, Any]) -> str:
    """A weight's operation, with what it reads codes, values and masks from: constants, or operations of their own."""
    if operation.type == "const":
        return "const"
    parts = []
    for argument in _CODES:
        if argument not in operation.inputs:
            continue
        binding = operation.inputs[argument].arguments[0]
        if binding.WhichOneof("binding") == "name":
            parts.append(_found(makers[binding.name], makers))
            continue
        data = binding.value.type.tensorType
        count = math.prod(dimension.constant.size for dimension in data.dimensions)
        parts.append(_part(argument, count, _BITS.get(data.dataType, 0)))
    return f"{operation.type}({', '.join(dict.fromkeys(parts))})"


def _expected(bank: WeightBank, use: Use) -> str:
    """The same, as the store's format says that it must be."""
    form = bank.store.format(use.name)
    first, last = use.rows or (0, form.rows)
    stored = bank.store.stored_before(use.name, last) - bank.store.stored_before(use.name, first)
    if form.format == "float" and not form.sparse:
        return "const"
    if form.sparse:
        operation, mask, codes = _SPARSE[form.format]
        ones = (last - first) // form.vector * form.columns
        text = f"{_part(mask, ones, 1)}, {_part(codes, stored, form.bits)}"
        text = f"constexpr_sparse_to_dense({operation}({text}))" if operation else f"constexpr_sparse_to_dense({text})"
    else:
        operation, codes = _DENSE[form.format]
        text = f"{operation}({_part(codes, stored, form.bits)})"
    return f"constexpr_blockwise_shift_scale({text})" if form.channel_scale else text


def _part(argument: str, count: int, bits: int) -> str:
    return f"{argument}: {count} of {bits} bits" if bits else f"{argument}: {count} floats"


def _verify_size(path: Path, builders: list[FunctionBuilder], bank: WeightBank) -> None:
    uses = {use for builder in builders for use in builder.uses.values()}
    promised = sum(_promised(bank.store.format(use.name), use) for use in uses)
    keys = {use.name + Variant(use.rows).suffix for use in uses}
    others = sum(stored.nbytes for key, stored in bank.shared.items() if not _is_part(key, keys))
    found = sum(file.stat().st_size for file in path.rglob("weight.bin"))
    overhead = max(SIZE_TOLERANCE * (promised + others), RECORD_OVERHEAD * (len(bank.shared) + 1))
    in_place = sum(stored.nbytes for stored in bank.shared.values() if math.prod(stored.shape) < _IN_PLACE)
    if not promised - in_place <= found <= promised + others + overhead:
        raise LoweringError(
            f"{path.name}: the weights take {found} bytes; their formats say {promised}, and constants {others} more",
            hint="A weight was stored densely or twice. This is a fault of the lowering; nothing was shipped.",
        )


def _promised(form: TensorFormat, use: Use) -> int:
    """Bytes that the store says of those rows, without tables: Core ML may need them for smaller groups."""
    if form.format == "float":
        whole = 2 * form.codes + (form.size + 7) // 8 * form.sparse
    else:
        whole = form.bytes - 2 * math.prod(form.parts().get(".palette", ("", (0,)))[1])
    return whole * (use.rows[1] - use.rows[0]) // form.rows if use.rows else whole


def _is_part(key: str, names: set[str]) -> bool:
    """Whether a constant is what a store promises; the float32 or scaled form of one is another constant."""
    tensor, _, part = key.rpartition(".")
    return key in names or (tensor in names and part in _PARTS)
