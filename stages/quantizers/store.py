"""The neutral store: a model's weights as every runtime will carry them, in codes, scales, zero points and palettes.

    weights.safetensors   NAME (float tensors), NAME.codes, NAME.scales, ...: the parts that formats.py tells of
    formats.json          {"tensors": {NAME: {"format", "shape", "bytes", ...}}, "totals": {...}}

A weight is a matrix (out, in); a convolution (out, in, height, width) is stored as one. In memory codes are one a byte,
unsigned, 0..2^bits-1; on disk codes, zero points and masks are packed (packing.py). writing.py writes a store.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StoreError, nearest
from stages.quantizers.dequantize import dequantize_affine, dequantize_palette
from stages.quantizers.formats import TensorFormat
from stages.quantizers.packing import count_ones, unpack_bits, unpack_some
from stages.quantizers.writing import FORMATS, WEIGHTS, StoreWriter
from stages.tensorfile import TensorReader

__all__ = ["QuantizedStore", "StoreWriter", "TensorFormat", "dequantize_affine", "dequantize_palette"]

_BLOCK = 1 << 22  # weights made dense at a time
_DAMAGED = "Build the quantize stage again; `tapeout verify` finds other damage."


class QuantizedStore:
    """A store opened for reading. Everything is read when asked for, from the mapped file."""

    def __init__(self, formats: dict[str, TensorFormat], weights: TensorReader, path: Path):
        self._formats, self._weights, self.path = formats, weights, path

    @classmethod
    def open(cls, path: Path) -> "QuantizedStore":
        """The store in folder path. Raises StoreError where a file is missing or damaged, or the two contradict."""
        path = Path(path)
        formats = _read_formats(path / FORMATS)
        weights = TensorReader(path / WEIGHTS)
        _check_parts(path, formats, weights)
        return cls(formats, weights, path)

    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self._formats)

    def format(self, name: str) -> TensorFormat:
        if name not in self._formats:
            raise StoreError(f"the store {self.path} holds no tensor '{name}'", hint=nearest(name, self._formats))
        return self._formats[name]

    def codes(self, name: str) -> NDArray[np.uint8]:
        """uint8 (out, in), of vectors (out / vector, in): one code a byte, unsigned; 0 where a weight is not kept."""
        form = self._quantized(name, "affine", "palette")
        return self._codes(name, form, 0, form.rows, 0)

    def packed_codes(self, name: str) -> NDArray[np.uint8]:
        """The codes as they are stored: row by row without gaps, packed little end first, uint8 and flat, read-only.

        Where the tensor is sparse, those of the kept weights alone.
        """
        self._quantized(name, "affine", "palette")
        return self._weights.array(f"{name}.codes")

    def scales(self, name: str) -> NDArray[np.float16]:
        """float16 (out, in / group_size)."""
        self._quantized(name, "affine")
        return self._weights.array(f"{name}.scales")

    def zero_points(self, name: str) -> NDArray[np.uint8]:
        """uint8 (out, in / group_size); all 2^(bits-1) where the format is symmetric."""
        form = self._quantized(name, "affine")
        if form.symmetric:
            return np.full((form.rows, form.groups), 1 << (form.bits - 1), np.uint8)
        packed = self._weights.array(f"{name}.zero_points")
        return unpack_bits(packed, form.bits, form.rows * form.groups).reshape(form.rows, form.groups)

    def palette(self, name: str) -> NDArray[np.float16]:
        """float16 (groups of rows, 2^bits), of vectors (groups, 2^bits, vector)."""
        self._quantized(name, "palette")
        return self._weights.array(f"{name}.palette")

    def channel_scales(self, name: str) -> NDArray[np.float16]:
        """float16 (out,): what each row of a palette's weights is multiplied by."""
        if not self._quantized(name, "palette").channel_scale:
            raise StoreError(f"tensor '{name}' is stored without channel scales")
        return self._weights.array(f"{name}.channel_scales")

    def mask(self, name: str) -> NDArray[np.bool_]:
        """bool (out, in): which weights are kept, the others being 0."""
        form = self.format(name)
        if not form.sparse:
            return np.ones((form.rows, form.columns), np.bool_)
        return self._mask(name, form, 0, form.rows).repeat(form.vector, axis=0)

    def packed_mask(self, name: str) -> NDArray[np.uint8]:
        """The mask as it is stored, one bit a code, packed as codes are. Raises StoreError for a dense tensor."""
        if not self.format(name).sparse:
            raise StoreError(f"tensor '{name}' is stored without a mask")
        return self._weights.array(f"{name}.mask")

    def stored_before(self, name: str, row: int) -> int:
        """How many codes (of a sparse float tensor, values) are stored for the rows before that one."""
        form = self.format(name)
        if not form.sparse:
            return row // form.vector * form.columns
        return count_ones(self.packed_mask(name), row // form.vector * form.columns)

    def float(self, name: str) -> NDArray[Any]:
        """The tensor of a float format: float16 or float32, in its shape; read-only where it is not sparse."""
        form = self._quantized(name, "float")
        if not form.sparse:
            return self._weights.array(name)
        values = self.values(name)
        dense = np.zeros((form.rows, form.columns), values.dtype)
        dense[self._mask(name, form, 0, form.rows)] = values
        return dense.reshape(form.shape)

    def values(self, name: str) -> NDArray[Any]:
        """The kept values of a sparse float tensor, row by row, flat and read-only; of a dense one, all."""
        form = self._quantized(name, "float")
        return self._weights.array(f"{name}.values") if form.sparse else self._weights.array(name).reshape(-1)

    def dense(self, name: str) -> NDArray[np.float32]:
        """The values that the stored bits mean: float32, in the tensor's own shape, a fresh array."""
        form = self.format(name)
        if form.format == "float":
            return self.float(name).astype(np.float32)
        values = np.empty((form.rows, form.columns), np.float32)
        for start, part in self.dense_blocks(name):
            values[start : start + len(part)] = part
        return values.reshape(form.shape)

    def dense_blocks(self, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The same, as matrices of some rows each with the number of the first, so that one block is in memory."""
        form = self.format(name)
        step = math.lcm(8, form.vector, (form.format == "palette" and form.group_size) or 1)  # whole palettes
        step *= max(1, _BLOCK // (step * form.columns))
        stored = 0
        for start in range(0, form.rows, step):
            stop = min(start + step, form.rows)
            mask = self._mask(name, form, start, stop) if form.sparse else None
            yield start, self._dense_rows(name, form, start, stop, stored, mask)
            stored += int(mask.sum()) if mask is not None else (stop - start) // form.vector * form.columns

    def _dense_rows(
        self, name: str, form: TensorFormat, start: int, stop: int, stored: int, mask: NDArray[np.bool_] | None
    ) -> NDArray[np.float32]:
        """Rows start..stop - 1, before which `stored` codes are; mask: theirs, one a code."""
        rows = slice(start, stop)
        if form.format == "float":
            if mask is None:
                return self.float(name).reshape(form.rows, -1)[rows].astype(np.float32)
            values = np.zeros(mask.shape, np.float32)
            values[mask] = self.values(name)[stored : stored + int(mask.sum())]
            return values
        codes = self._codes(name, form, start, stop, stored)
        if form.format == "affine":
            values = dequantize_affine(codes, self.scales(name)[rows], self.zero_points(name)[rows])
        else:
            palette = self.palette(name)
            if form.group_size:
                palette = palette[start // form.group_size : -(-stop // form.group_size)]
            channel_scales = self.channel_scales(name)[rows] if form.channel_scale else None
            values = dequantize_palette(codes, palette, form.group_size, channel_scales)
        if mask is not None:
            values[~mask.repeat(form.vector, axis=0)] = 0
        return values

    def _codes(self, name: str, form: TensorFormat, start: int, stop: int, stored: int) -> NDArray[np.uint8]:
        """The codes of rows start..stop - 1, before which `stored` are, (rows / vector, in)."""
        packed, shape = self.packed_codes(name), ((stop - start) // form.vector, form.columns)
        if not form.sparse:
            return unpack_some(packed, form.bits, stored, shape[0] * shape[1]).reshape(shape)
        mask = self._mask(name, form, start, stop)
        codes = np.zeros(shape, np.uint8)
        codes[mask] = unpack_some(packed, form.bits, stored, int(mask.sum()))
        return codes

    def _mask(self, name: str, form: TensorFormat, start: int, stop: int) -> NDArray[np.bool_]:
        """One bool a code of rows start..stop - 1: (rows / vector, in)."""
        begin, end = (row // form.vector * form.columns for row in (start, stop))
        bits = unpack_some(self.packed_mask(name), 1, begin, end - begin)
        return bits.view(np.bool_).reshape(-1, form.columns)

    def total_bytes(self) -> int:
        """Packed bytes of all tensors."""
        return sum(form.bytes for form in self._formats.values())

    def _quantized(self, name: str, *expected: str) -> TensorFormat:
        form = self.format(name)
        if form.format not in expected:
            raise StoreError(f"tensor '{name}' is stored as {form.format}; asked for as {' or '.join(expected)}")
        return form


def _read_formats(path: Path) -> dict[str, TensorFormat]:
    if not path.is_file():
        raise StoreError(f"{path.name} is missing in {path.parent}", hint="Expected a folder that quantize wrote.")
    try:
        tensors = json.loads(path.read_text(encoding="utf-8"))["tensors"]
        formats = {}
        for name, values in tensors.items():
            formats[name] = TensorFormat.from_dict(values)
            if problem := formats[name].problem():
                raise ValueError(f"tensor '{name}' {problem}")
        return formats
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as cause:
        raise StoreError(f"{path} is damaged: {cause}", hint=_DAMAGED) from cause


def _check_parts(path: Path, formats: dict[str, TensorFormat], weights: TensorReader) -> None:
    """Every part that the formats promise is there, in its dtype and shape, and nothing else is."""
    expected = {f"{name}{ending}": part for name, form in formats.items() for ending, part in form.parts().items()}
    found = {name: (entry.dtype, entry.shape) for name, entry in weights.entries.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise StoreError(
                f"{path / WEIGHTS} is damaged: '{name}' is {found.get(name, 'missing')}, "
                f"{FORMATS} says {expected.get(name, 'nothing of it')}",
                hint=_DAMAGED,
            )
    for name, form in formats.items():
        if form.bytes != form.packed_bytes():
            raise StoreError(
                f"{path / FORMATS} is damaged: tensor '{name}' takes {form.packed_bytes()} bytes, not {form.bytes}",
                hint=_DAMAGED,
            )
        if form.sparse and (kept := count_ones(weights.array(f"{name}.mask")) * form.vector) != form.kept:
            raise StoreError(
                f"{path / WEIGHTS} is damaged: the mask of '{name}' keeps {kept} weights, {FORMATS} says {form.kept}",
                hint=_DAMAGED,
            )
