"""Compressed constants: what each constexpr operation stands for, as a dense tensor (MIL's iOS 16 and iOS 18 forms)."""

import math
from collections.abc import Callable
from typing import Any

import torch

from stages.runtimes.coreml_reference.package import unpack

_FLOATS = {"fp16": torch.float16, "fp32": torch.float32}


def blockwise_shift_scale(data: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
    """scale * (data - offset), one scale and offset a block; block sizes are data.shape / scale.shape."""
    values = data.float()
    if offset is not None:
        values = values - _expanded(offset.float(), data.shape)
    return (values * _expanded(scale.float(), data.shape)).to(scale.dtype)


def affine_dequantize(
    quantized_data: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: torch.Tensor
) -> torch.Tensor:
    """scale * (data - zero point), scalars or one each along `axis` (iOS 16)."""
    shape = [1] * quantized_data.dim()
    shape[int(axis)] = -1
    factor, zero = (part.float().reshape(shape) if part.dim() else part.float() for part in (scale, zero_point))
    return ((quantized_data.float() - zero) * factor).to(scale.dtype)


def lut_to_dense(
    indices: torch.Tensor,
    lut: torch.Tensor,
    vector_axis: torch.Tensor | None = None,
    shape: torch.Tensor | None = None,
) -> torch.Tensor:
    """Palettes: lut (groups along each axis of indices, entries, vector size). With `shape`, iOS 16's packed form."""
    if shape is not None:
        return lut[_unpacked(indices, shape, int(math.log2(lut.numel())))]
    entries, size = lut.shape[-2:]
    tables = lut.reshape(-1, entries, size)
    numbers = torch.arange(len(tables)).reshape(lut.shape[:-2])
    table = _expanded(numbers, indices.shape)
    if size == 1:
        return tables.reshape(-1)[table * entries + indices.long()]
    axis = int(vector_axis) % indices.dim() if vector_axis is not None else indices.dim() - 1
    vectors = tables[table, indices.long()].movedim(-1, axis + 1)
    return vectors.flatten(axis, axis + 1)


def sparse_to_dense(nonzero_data: torch.Tensor, mask: torch.Tensor, shape: torch.Tensor | None = None) -> torch.Tensor:
    """Values where the mask's bits are set, in order; zero elsewhere. With `shape`, iOS 16's packed mask."""
    where = (mask if shape is None else _unpacked(mask, shape, 1)).bool()
    dense = torch.zeros(where.shape, dtype=nonzero_data.dtype)
    dense[where] = nonzero_data.reshape(-1)
    return dense


def sparse_blockwise_shift_scale(
    data_mask: torch.Tensor, nonzero_data: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantizes the kept values only; returns the mask and them, for sparse_to_dense."""
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.bool()]


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
    return mask, dense[mask.bool()]


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


def _expanded(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Repeat each element of blocks over its block, up to shape; axes without blocks stay 1 and broadcast."""
    for axis, (found, wanted) in enumerate(zip(blocks.shape, shape, strict=True)):
        if 1 < found < wanted:
            blocks = blocks.repeat_interleave(wanted // found, axis)
    return blocks


def _unpacked(packed: torch.Tensor, shape: torch.Tensor, bits: int) -> torch.Tensor:
    sizes = [int(size) for size in shape]
    raw = packed.reshape(-1).numpy()
    if bits == 8:
        return torch.from_numpy(raw).long().reshape(sizes)
    return torch.from_numpy(unpack(raw, math.prod(sizes), bits, False)).long().reshape(sizes)
