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
_PARTS = ("data", "scale", "offset", "indices", "lut")
_CODES = {
    "affine": ("constexpr_blockwise_shift_scale", "data"),
    "palette": ("constexpr_lut_to_dense", "indices"),
}


def verify_package(path: Path, spec: Any, builders: list[FunctionBuilder], bank: WeightBank) -> None:
    """Raises LoweringError where a quantized tensor is no constexpr of its bits, or weight.bin weighs 10 % more
    than all of them (only where every tensor is tiny may it be as much as its headers are)."""
    for builder in builders:
        function = spec.mlProgram.functions[builder.spec.name]
        operations = {
            operation_name(operation): operation
            for operation in function.block_specializations[function.opset].operations
        }
        for identifier, use in builder.uses.items():
            _verify_tensor(path, builder.spec.name, use, operations.get(identifier), bank)
    _verify_size(path, builders, bank)


def _verify_tensor(path: Path, function: str, use: Use, operation: Any, bank: WeightBank) -> None:
    form = bank.store.format(use.name)
    found = "nothing" if operation is None else operation.type
    if form.format == "float":
        expected = "const"
    else:
        expected, codes = _CODES[form.format]
        if found == expected:
            data = operation.inputs[codes].arguments[0].value.type.tensorType
            count = math.prod(dimension.constant.size for dimension in data.dimensions)
            found = f"{count} codes of {_BITS.get(data.dataType)} bits"
            rows = use.rows[1] - use.rows[0] if use.rows else form.rows
            expected = f"{rows * form.columns} codes of {form.bits} bits"
    if found != expected:
        raise LoweringError(
            f"{path.name}, function '{function}': tensor '{use.name}' was saved as {found}, expected {expected}",
            hint="This is a fault of the lowering, or of the version of coremltools; nothing was shipped.",
        )


def _verify_size(path: Path, builders: list[FunctionBuilder], bank: WeightBank) -> None:
    uses = {use for builder in builders for use in builder.uses.values()}
    promised = sum(_promised(bank.store.format(use.name), use) for use in uses)
    keys = {use.name + Variant(use.rows).suffix for use in uses}
    others = sum(stored.nbytes for key, stored in bank.shared.items() if not _is_part(key, keys))
    found = sum(file.stat().st_size for file in path.rglob("weight.bin"))
    overhead = max(SIZE_TOLERANCE * (promised + others), RECORD_OVERHEAD * (len(bank.shared) + 1))
    if not promised <= found <= promised + others + overhead:
        raise LoweringError(
            f"{path.name}: the weights take {found} bytes; their formats say {promised}, and constants {others} more",
            hint="A weight was stored densely or twice. This is a fault of the lowering; nothing was shipped.",
        )


def _promised(form: TensorFormat, use: Use) -> int:
    """Bytes that the store says of those rows."""
    whole = 2 * math.prod(form.shape) if form.format == "float" else form.bytes
    return whole * (use.rows[1] - use.rows[0]) // form.rows if use.rows else whole


def _is_part(key: str, names: set[str]) -> bool:
    """Whether a constant is what a store promises; the float32 or scaled form of one is another constant."""
    tensor, _, part = key.rpartition(".")
    return key in names or (tensor in names and part in _PARTS)
