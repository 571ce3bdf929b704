"""Writing a store: every tensor is checked, packed and appended, one in memory at a time."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StoreError
from stages.quantizers.formats import FLOATS, TensorFormat
from stages.quantizers.packing import pack_bits
from stages.tensorfile import TensorWriter

WEIGHTS, FORMATS = "weights.safetensors", "formats.json"
Array = NDArray[Any]
Mask = NDArray[np.bool_] | None


class StoreWriter:
    """Writes a store into a folder, in any order of tensors; the bytes depend on the tensors alone.

    The two files appear on `close` (or at the end of a `with` block without an error). Every add_* checks what it is
    given and raises StoreError, naming the tensor. `reason`: why a tensor is not what the configuration asked for.
    `mask`: bool (out, in), False where a weight is 0 whatever its code; its bits are stored, and no code of those.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._weights = TensorWriter(self.path / WEIGHTS)
        self._formats: dict[str, TensorFormat] = {}

    def add_float(self, name: str, array: Array, reason: str = "", mask: Mask = None) -> None:
        """A tensor kept as float16 or float32. mask: in its shape, or (out, in)."""
        if str(array.dtype) not in FLOATS:
            raise StoreError(f"tensor '{name}' is {array.dtype}; a store holds float16 or float32")
        self._check(name, np.isfinite(array).all(), "holds NaN or infinite values")
        form = TensorFormat("float", array.shape, 0, dtype=str(array.dtype), reason=reason)
        kept = self._kept(name, form, mask)
        parts = {"": array} if kept is None else {".values": array.reshape(-1)[kept]}
        self._add(name, form, parts, kept)

    def add_affine(
        self,
        name: str,
        shape: tuple[int, ...],
        bits: int,
        codes: NDArray[np.uint8],
        scales: NDArray[np.float16],
        zero_points: NDArray[np.uint8] | None,
        reason: str = "",
        mask: Mask = None,
    ) -> None:
        """codes uint8 (out, in); scales float16 (out, groups); zero_points uint8 (out, groups), None = symmetric.

        shape: the tensor's own, (out, in) or a convolution's (out, in / groups, height, width).
        """
        columns, groups = math.prod(shape[1:]), scales.shape[-1]
        fits = scales.dtype == np.float16 and scales.ndim == 2 and len(scales) == shape[0]
        self._check(name, fits, "has scales of the wrong form")
        self._check(name, groups > 0 and columns % groups == 0, f"has {groups} groups in {columns} columns")
        self._check(name, np.isfinite(scales).all(), "has a scale outside float16's range")
        size, symmetric = columns // groups, zero_points is None
        form = TensorFormat("affine", shape, 0, bits=bits, group_size=size, symmetric=symmetric, reason=reason)
        kept = self._kept(name, form, mask)
        parts: dict[str, Array] = {".scales": scales, ".codes": self._codes(name, form, codes, kept)}
        if zero_points is not None:
            fits = zero_points.dtype == np.uint8 and zero_points.shape == scales.shape
            self._check(name, fits and not (zero_points >> bits).any(), "has zero points of the wrong form")
            parts[".zero_points"] = pack_bits(zero_points, bits)
        self._add(name, form, parts, kept)

    def add_palette(
        self,
        name: str,
        shape: tuple[int, ...],
        bits: int,
        codes: NDArray[np.uint8],
        palette: NDArray[np.float16],
        group_size: int = 0,
        reason: str = "",
        channel_scales: NDArray[np.float16] | None = None,
        mask: Mask = None,
    ) -> None:
        """codes uint8 (out, in); palette float16 (ceil(out / group_size), 2^bits); group_size 0 = one palette.

        Vectors: codes (out / vector, in), palette (groups, 2^bits, vector), whose entries are consecutive rows of a
        column; out and group_size are multiples of vector, and a mask keeps whole vectors. channel_scales: float16
        (out,), by which rows are multiplied.
        """
        vector, scaled = palette.shape[2] if palette.ndim == 3 else 1, channel_scales is not None
        form = TensorFormat(
            "palette", shape, 0, bits=bits, group_size=group_size, reason=reason, vector=vector, channel_scale=scaled
        )
        kept = self._kept(name, form, mask)
        parts: dict[str, Array] = {".palette": palette, ".codes": self._codes(name, form, codes, kept)}
        expected = (form.groups, 1 << bits, *((vector,) if vector > 1 else ()))
        fits = palette.dtype == np.float16 and palette.shape == expected
        self._check(name, fits, f"has a palette {palette.dtype} {palette.shape}, expected {expected}")
        self._check(name, np.isfinite(palette).all(), "has a palette entry outside float16's range")
        if channel_scales is not None:
            fits = channel_scales.dtype == np.float16 and channel_scales.shape == (form.rows,)
            self._check(name, fits, f"has channel scales of the wrong form, expected float16 ({form.rows},)")
            self._check(name, np.isfinite(channel_scales).all(), "has a channel scale outside float16's range")
            parts[".channel_scales"] = channel_scales
        self._add(name, form, parts, kept)

    def formats(self) -> dict[str, TensorFormat]:
        """What was added so far, by name, sorted."""
        return dict(sorted(self._formats.items()))

    def close(self) -> None:
        """Write both files."""
        self._weights.close()
        total = sum(form.bytes for form in self._formats.values())
        parameters = sum(form.size for form in self._formats.values())
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

    def _kept(self, name: str, form: TensorFormat, mask: Mask) -> NDArray[np.bool_] | None:
        """One bool a code, flat."""
        self._check(name, not form.problem(), form.problem())
        if mask is None:
            return None
        fits = mask.dtype == np.bool_ and mask.shape in (form.shape, (form.rows, form.columns))
        self._check(name, fits, f"has a mask {mask.dtype} {mask.shape}, expected bool {form.rows, form.columns}")
        if form.vector == 1:
            return mask.reshape(-1)
        vectors = mask.reshape(-1, form.vector, form.columns)
        self._check(name, (vectors == vectors[:, :1]).all(), f"has a mask that divides vectors of {form.vector} rows")
        return vectors[:, 0].reshape(-1)

    def _codes(
        self, name: str, form: TensorFormat, codes: NDArray[np.uint8], kept: NDArray[np.bool_] | None
    ) -> NDArray[np.uint8]:
        expected = (form.rows // form.vector, form.columns)
        fits = codes.dtype == np.uint8 and codes.shape == expected
        self._check(name, fits, f"has codes {codes.dtype} {codes.shape}, expected uint8 {expected}")
        fits = not codes.size or not int(codes.max()) >> form.bits
        self._check(name, fits, f"has a code that needs over {form.bits} bits")
        return pack_bits(codes if kept is None else codes.reshape(-1)[kept], form.bits)

    def _add(self, name: str, form: TensorFormat, parts: dict[str, Array], kept: NDArray[np.bool_] | None) -> None:
        if kept is not None:
            form = replace(form, sparse=True, kept=int(kept.sum()) * form.vector)
            parts = parts | {".mask": pack_bits(kept.view(np.uint8), 1)}
        self._check(name, not form.problem(), form.problem())
        for ending, array in parts.items():
            self._weights.add(f"{name}{ending}", array)
        self._formats[name] = replace(form, bytes=form.packed_bytes())

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
