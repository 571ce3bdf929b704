"""Compressed constants: what each constexpr operation stands for, as a dense tensor (MIL's iOS 16 and iOS 18 forms)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_FLOATS = {"fp16": torch.float16, "fp32": torch.float32}


def blockwise_shift_scale(data: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
    """scale * (data - offset), one scale and offset a block; block sizes are data.shape / scale.shape."""
    values = data.float()
    blocks: list[int] = []
    for wanted, found in zip(data.shape, scale.shape, strict=True):
        blocks += [found, wanted // found]
    spread = [size for found in scale.shape for size in (found, 1)]
    blocked = (values if values is not data else values.clone()).reshape(blocks)
    if offset is not None:
        blocked -= offset.float().reshape(spread)
    blocked *= scale.float().reshape(spread)
    return blocked.reshape(data.shape).to(scale.dtype)


def affine_dequantize(
    quantized_data: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: torch.Tensor
) -> torch.Tensor:
    """scale * (data - zero point), scalars or one each along `axis` (iOS 16)."""
    shape = [1] * quantized_data.dim()
    shape[int(axis)] = -1
    factor, zero = (part.float().reshape(shape) if part.dim() else part.float() for part in (scale, zero_point))
    return ((quantized_data.float() - zero) * factor).to(scale.dtype)


def lut_to_dense(indices: torch.Tensor, lut: torch.Tensor, vector_axis: torch.Tensor | None = None) -> torch.Tensor:
    """Palettes: lut (groups along each axis of indices, entries, vector size)."""
    entries, size = lut.shape[-2:]
    tables = lut.reshape(-1, entries, size)
    if len(tables) == 1 and size == 1:
        return tables.reshape(-1)[indices.int()]
    table = _expanded(torch.arange(len(tables), dtype=torch.int32).reshape(lut.shape[:-2]), indices.shape)
    if size == 1:
        return tables.reshape(-1)[table * entries + indices.int()]
    axis = int(vector_axis) % indices.dim() if vector_axis is not None else indices.dim() - 1
    vectors = tables.reshape(-1, size)[table * entries + indices.int()].movedim(-1, axis + 1)
    return vectors.flatten(axis, axis + 1)


def sparse_to_dense(nonzero_data: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values where the mask's bits are set, in order; zero elsewhere."""
    where = mask.bool()
    return torch.zeros(where.shape, dtype=nonzero_data.dtype).masked_scatter_(where, nonzero_data)


def sparse_blockwise_shift_scale(
    data_mask: torch.Tensor, nonzero_data: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantizes the kept values only; returns the mask and them, for sparse_to_dense."""
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense.masked_select(data_mask.bool())


def lut_to_sparse(
    indices_mask: torch.Tensor,
    indices_nonzero_data: torch.Tensor,
    lut: torch.Tensor,
    vector_axis: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Looks up the kept values only; returns the mask and them, for sparse_to_dense."""
    dense = lut_to_dense(sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if dense.shape != mask.shape and vector_axis is not None:
        axis = int(vector_axis) % mask.dim()
        mask = mask.repeat_interleave(dense.shape[axis] // mask.shape[axis], axis)
    return mask, dense.masked_select(mask.bool())


def cast(source_val: torch.Tensor, output_dtype: str) -> torch.Tensor:
    return source_val.to(_FLOATS[output_dtype])


CONSTEXPR: dict[str, Callable[..., Any]] = {
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_sparse_to_dense": sparse_to_dense,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_cast": cast,
}


@dataclass(frozen=True)
class ByRows:
    """How to compute some rows of a result: those rows of `operand`, and the rows of `along` that belong to them."""

    operand: str
    along: tuple[str, ...] = ()
    possible: Callable[[Mapping[str, Any]], bool] = lambda arguments: True


def _vectors_keep_rows(arguments: Mapping[str, Any]) -> bool:
    axis, indices = arguments.get("vector_axis"), arguments["indices"]
    last = len(indices.shape) - 1
    return arguments["lut"].shape[-1] == 1 or (last if axis is None else int(axis) % (last + 1)) > 0


ROWS = {
    "constexpr_blockwise_shift_scale": ByRows("data", ("scale", "offset")),
    "constexpr_affine_dequantize": ByRows(
        "quantized_data", ("scale", "zero_point"), lambda arguments: int(arguments["axis"]) == 0
    ),
    "constexpr_lut_to_dense": ByRows("indices", ("lut",), _vectors_keep_rows),
    "constexpr_cast": ByRows("source_val"),
}


def _expanded(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Repeat each element of blocks over its block, up to shape; axes without blocks stay 1 and broadcast."""
    for axis, (found, wanted) in enumerate(zip(blocks.shape, shape, strict=True)):
        if 1 < found < wanted:
            blocks = blocks.repeat_interleave(wanted // found, axis)
    return blocks
