"""The neutral store: a model's weights as every runtime will carry them, in codes, scales, zero points and palettes.

    weights.safetensors   NAME (float tensors), NAME.codes, NAME.scales, NAME.zero_points, NAME.palette
    formats.json          {"tensors": {NAME: {"format", "shape", "bytes", ...}}, "totals": {...}}

A weight is a matrix (out, in); a 1x1 convolution (out, in, 1, 1) is stored as one. In memory codes are one a byte,
unsigned, 0..2^bits-1; on disk codes and zero points are packed (packing.py). The value of a weight is

    affine    float32(scale) * (code - zero_point), a scale and a zero point for each `group_size` columns of a row
    palette   float32(palette[code]), one palette for each `group_size` rows (0: one for the tensor)
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StoreError, nearest
from stages.quantizers.packing import BIT_WIDTHS, pack_bits, packed_size, unpack_bits
from stages.tensorfile import TensorReader, TensorWriter

WEIGHTS, FORMATS = "weights.safetensors", "formats.json"
_BLOCK = 1 << 22  # weights made dense at a time
_DAMAGED = "Build the quantize stage again; `tapeout verify` finds other damage."


@dataclass(frozen=True)
class TensorFormat:
    """How one tensor is stored. `bytes`: packed size of all its parts. `reason`: why it is not in the format asked for.

    float: dtype. affine: bits, group_size (columns), symmetric. palette: bits, group_size (rows; 0 = whole tensor).
    """

    format: str
    shape: tuple[int, ...]
    bytes: int
    dtype: str = "float16"
    bits: int = 0
    group_size: int = 0
    symmetric: bool = False
    reason: str = ""

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def groups(self) -> int:
        """Scales a row (affine), or palettes a tensor (palette)."""
        if self.format == "affine":
            return self.columns // self.group_size
        return -(-self.rows // self.group_size) if self.group_size else 1

    def to_dict(self) -> dict[str, Any]:
        fields = {
            "float": ("dtype",),
            "affine": ("bits", "group_size", "symmetric"),
            "palette": ("bits", "group_size"),
        }[self.format]
        values = asdict(self)
        kept = {key: values[key] for key in ("format", "bytes", *fields)} | {"shape": list(self.shape)}
        return kept | ({"reason": self.reason} if self.reason else {})


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
        """uint8 (out, in), one code a byte, unsigned."""
        form = self._quantized(name, "affine", "palette")
        packed = self._weights.array(f"{name}.codes")
        return unpack_bits(packed, form.bits, form.rows * form.columns).reshape(form.rows, form.columns)

    def packed_codes(self, name: str) -> NDArray[np.uint8]:
        """The codes as they are stored: row by row without gaps, packed little end first, uint8 and flat, read-only."""
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
        """float16 (groups of rows, 2^bits)."""
        self._quantized(name, "palette")
        return self._weights.array(f"{name}.palette")

    def float(self, name: str) -> NDArray[Any]:
        """The tensor of a float format as it is stored: float16 or float32, in its shape, read-only."""
        self._quantized(name, "float")
        return self._weights.array(name)

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
        step = math.lcm(8, (form.format == "palette" and form.group_size) or 1)  # whole bytes of codes, whole palettes
        step *= max(1, _BLOCK // (step * form.columns))
        for start in range(0, form.rows, step):
            rows = slice(start, min(start + step, form.rows))
            if form.format == "float":
                yield start, self.float(name).reshape(form.rows, -1)[rows].astype(np.float32)
                continue
            packed = self.packed_codes(name)[start * form.columns * form.bits // 8 :]
            count = (rows.stop - start) * form.columns
            codes = unpack_bits(packed[: packed_size(count, form.bits)], form.bits, count).reshape(-1, form.columns)
            if form.format == "affine":
                yield start, dequantize_affine(codes, self.scales(name)[rows], self.zero_points(name)[rows])
            else:
                palette = self.palette(name)
                if form.group_size:
                    palette = palette[start // form.group_size : -(-rows.stop // form.group_size)]
                yield start, dequantize_palette(codes, palette, form.group_size)

    def total_bytes(self) -> int:
        """Packed bytes of all tensors."""
        return sum(form.bytes for form in self._formats.values())

    def _quantized(self, name: str, *expected: str) -> TensorFormat:
        form = self.format(name)
        if form.format not in expected:
            raise StoreError(f"tensor '{name}' is stored as {form.format}; asked for as {' or '.join(expected)}")
        return form


def dequantize_affine(
    codes: NDArray[np.uint8], scales: NDArray[np.float16], zero_points: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """codes (out, in), scales and zero points (out, groups) -> float32 (out, in)."""
    rows, columns = codes.shape
    grouped = codes.reshape(rows, scales.shape[1], -1).astype(np.float32)
    grouped -= zero_points[:, :, None]
    grouped *= scales.astype(np.float32)[:, :, None]
    return grouped.reshape(rows, columns)


def dequantize_palette(codes: NDArray[np.uint8], palette: NDArray[np.float16], group_size: int) -> NDArray[np.float32]:
    """codes (out, in), palette (groups, 2^bits), group_size rows share one (0: all) -> float32 (out, in)."""
    rows = np.arange(len(codes)) // (group_size or len(codes))
    values: NDArray[np.float32] = palette.astype(np.float32)[rows[:, None], codes]
    return values


class StoreWriter:
    """Writes a store into a folder, in any order of tensors; the bytes depend on the tensors alone.

    The two files appear on `close` (or at the end of a `with` block without an error). Every add_* checks what it is
    given and raises StoreError, naming the tensor.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._weights = TensorWriter(self.path / WEIGHTS)
        self._formats: dict[str, TensorFormat] = {}

    def add_float(self, name: str, array: NDArray[Any], reason: str = "") -> None:
        """A tensor kept as float16 or float32. `reason`: why, where the configuration asked for less."""
        if array.dtype not in (np.float16, np.float32):
            raise StoreError(f"tensor '{name}' is {array.dtype}; a store holds float16 or float32")
        self._check(name, np.isfinite(array).all(), "holds NaN or infinite values")
        self._weights.add(name, array)
        form = TensorFormat("float", array.shape, array.nbytes, dtype=str(array.dtype), reason=reason)
        self._formats[name] = form

    def add_affine(
        self,
        name: str,
        shape: tuple[int, ...],
        bits: int,
        codes: NDArray[np.uint8],
        scales: NDArray[np.float16],
        zero_points: NDArray[np.uint8] | None,
        reason: str = "",
    ) -> None:
        """codes uint8 (out, in); scales float16 (out, groups); zero_points uint8 (out, groups), None = symmetric."""
        columns, groups = math.prod(shape[1:]), scales.shape[-1]
        self._check_codes(name, shape, bits, codes)
        self._check(name, scales.dtype == np.float16 and scales.shape[0] == shape[0], "has scales of the wrong form")
        self._check(name, groups > 0 and columns % groups == 0, f"has {groups} groups in {columns} columns")
        self._check(name, np.isfinite(scales).all(), "has a scale outside float16's range")
        size = packed_size(codes.size, bits) + scales.nbytes
        self._weights.add(f"{name}.codes", pack_bits(codes, bits))
        self._weights.add(f"{name}.scales", scales)
        if zero_points is not None:
            fits = zero_points.dtype == np.uint8 and zero_points.shape == scales.shape
            self._check(name, fits and not (zero_points >> bits).any(), "has zero points of the wrong form")
            self._weights.add(f"{name}.zero_points", pack_bits(zero_points, bits))
            size += packed_size(zero_points.size, bits)
        form = TensorFormat("affine", shape, size, "", bits, columns // groups, zero_points is None, reason)
        self._formats[name] = form

    def add_palette(
        self,
        name: str,
        shape: tuple[int, ...],
        bits: int,
        codes: NDArray[np.uint8],
        palette: NDArray[np.float16],
        group_size: int = 0,
        reason: str = "",
    ) -> None:
        """codes uint8 (out, in); palette float16 (ceil(out / group_size), 2^bits); group_size 0 = one palette."""
        self._check_codes(name, shape, bits, codes)
        size = packed_size(codes.size, bits) + palette.nbytes
        form = TensorFormat("palette", shape, size, "", bits, group_size, False, reason)
        fits = palette.dtype == np.float16 and palette.shape == (form.groups, 1 << bits)
        self._check(name, fits, f"has a palette {palette.dtype} {palette.shape}, expected {form.groups, 1 << bits}")
        self._check(name, np.isfinite(palette).all(), "has a palette entry outside float16's range")
        self._weights.add(f"{name}.codes", pack_bits(codes, bits))
        self._weights.add(f"{name}.palette", palette)
        self._formats[name] = form

    def formats(self) -> dict[str, TensorFormat]:
        """What was added so far, by name, sorted."""
        return dict(sorted(self._formats.items()))

    def close(self) -> None:
        """Write both files."""
        self._weights.close()
        total = sum(form.bytes for form in self._formats.values())
        parameters = sum(math.prod(form.shape) for form in self._formats.values())
        description = {
            "tensors": {name: form.to_dict() for name, form in self._formats.items()},
            "totals": {
                "bytes": total,
                "parameters": parameters,
                "bits_per_parameter": round(8 * total / max(parameters, 1), 4),
            },
        }
        text = json.dumps(description, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        (self.path / FORMATS).write_text(text + "\n", encoding="utf-8")

    def _check_codes(self, name: str, shape: tuple[int, ...], bits: int, codes: NDArray[np.uint8]) -> None:
        self._check(name, bits in BIT_WIDTHS, f"has {bits} bits; expected one of {BIT_WIDTHS}")
        expected = (shape[0], math.prod(shape[1:]))
        fits = codes.dtype == np.uint8 and codes.shape == expected
        self._check(name, fits, f"has codes {codes.dtype} {codes.shape}, expected uint8 {expected}")
        self._check(name, not codes.size or not int(codes.max()) >> bits, f"has a code that needs over {bits} bits")

    def _check(self, name: str, good: Any, problem: str) -> None:
        if not good:
            raise StoreError(f"tensor '{name}' {problem}", hint="The quantizer that made it is at fault.")

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._weights.discard()


def _read_formats(path: Path) -> dict[str, TensorFormat]:
    if not path.is_file():
        raise StoreError(f"{path.name} is missing in {path.parent}", hint="Expected a folder that quantize wrote.")
    try:
        tensors = json.loads(path.read_text(encoding="utf-8"))["tensors"]
        formats = {}
        for name, values in tensors.items():
            form = TensorFormat(**{**values, "shape": tuple(values["shape"])})
            sound = form.format == "float" or (form.format in ("affine", "palette") and form.bits in BIT_WIDTHS)
            if not sound or (form.format == "affine" and form.columns % form.group_size):
                raise ValueError(f"tensor '{name}' has an impossible format")
            formats[name] = form
        return formats
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as cause:
        raise StoreError(f"{path} is damaged: {cause}", hint=_DAMAGED) from cause


def _check_parts(path: Path, formats: dict[str, TensorFormat], weights: TensorReader) -> None:
    """Every part that the formats promise is there, in its dtype and shape, and nothing else is."""
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, form in formats.items():
        if form.format == "float":
            expected[name] = ({"float16": "F16", "float32": "F32"}.get(form.dtype, form.dtype), form.shape)
            continue
        expected[f"{name}.codes"] = ("U8", (packed_size(form.rows * form.columns, form.bits),))
        if form.format == "palette":
            expected[f"{name}.palette"] = ("F16", (form.groups, 1 << form.bits))
            continue
        expected[f"{name}.scales"] = ("F16", (form.rows, form.groups))
        if not form.symmetric:
            expected[f"{name}.zero_points"] = ("U8", (packed_size(form.rows * form.groups, form.bits),))
    found = {name: (entry.dtype, entry.shape) for name, entry in weights.entries.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise StoreError(
                f"{path / WEIGHTS} is damaged: '{name}' is {found.get(name, 'missing')}, "
                f"{FORMATS} says {expected.get(name, 'nothing of it')}",
                hint=_DAMAGED,
            )
