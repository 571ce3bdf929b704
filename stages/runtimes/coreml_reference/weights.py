"""Constants that stay as they lie in weight.bin until they are used: packed codes, and what compression made of them.

A Weight gives its dense values whole or some rows at a time. Both are bit for bit what unpacking everything would give.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from stages.runtimes.coreml_reference.constexpr import CONSTEXPR, ROWS

_NUMPY: dict[str, Any] = {
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "FLOAT64": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "BOOL": np.bool_,
}
_PACKED = {"INT4": (4, True), **{f"UINT{bits}": (bits, False) for bits in (1, 2, 3, 4, 6)}}
_WIDER = {np.uint16: np.int32, np.uint32: np.int64}  # torch has no arithmetic for these
_CHUNK = (1 << 15) - 1  # values made dense at a time: they stay in the processor's cache, and in one thread

Rows = slice | torch.Tensor


@runtime_checkable
class Weight(Protocol):
    """A constant that is made dense when it is used. `dtype`: of its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def by_rows(self) -> bool:
        """Whether some rows can be had without the others."""
        ...

    def rows(self, index: Rows) -> torch.Tensor:
        """Some rows (of the first axis), dense: a slice without a step, or a tensor of row numbers."""
        ...

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """All of it, rounded to its own dtype, then stored as `dtype`."""
        ...


class Stored:
    """What lies in weight.bin. raw: its bytes, uint8, mapped; type: MIL's name of the element type."""

    def __init__(self, raw: NDArray[np.uint8], shape: Sequence[int], type: str):
        self._raw, self.shape, self._type = raw, tuple(shape), type
        count = math.prod(self.shape)
        self._row_bits = (count // self.shape[0] if self.shape else 1) * self._bits
        if type in _PACKED:
            self.dtype = torch.int8 if _PACKED[type][1] else torch.uint8
        else:
            numpy_type = np.dtype(_WIDER.get(_NUMPY[type], _NUMPY[type]))
            self.dtype = torch.from_numpy(np.empty(0, numpy_type)).dtype
        if raw.size != -(-count * self._bits // 8):
            raise ValueError(f"a {type} of shape {self.shape} cannot have {raw.size} bytes")

    @property
    def _bits(self) -> int:
        return _PACKED[self._type][0] if self._type in _PACKED else 8 * np.dtype(_NUMPY[self._type]).itemsize

    @property
    def is_mapped(self) -> bool:
        """Whether it is used as it lies in the file."""
        return self._type not in _PACKED and _NUMPY[self._type] not in _WIDER

    @property
    def by_rows(self) -> bool:
        return len(self.shape) > 1 and self._row_bits % 8 == 0

    def rows(self, index: Rows) -> torch.Tensor:
        part = self._raw.reshape(self.shape[0], -1)[index if isinstance(index, slice) else index.numpy()]
        return self._tensor(part, (len(part), *self.shape[1:]))

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._tensor(self._raw, self.shape).to(dtype or self.dtype)

    def reinterpreted(self, shape: Sequence[int], bits: int) -> "Stored":
        """The same bytes as packed codes (iOS 16 packs by hand)."""
        return Stored(self._raw, shape, f"UINT{bits}")

    def _tensor(self, raw: NDArray[np.uint8], shape: tuple[int, ...]) -> torch.Tensor:
        if self._type in _PACKED:
            return torch.from_numpy(unpack(raw.reshape(-1), math.prod(shape), *_PACKED[self._type])).reshape(shape)
        array = np.ascontiguousarray(raw).reshape(-1).view(_NUMPY[self._type])
        wider = _WIDER.get(array.dtype.type)
        return torch.from_numpy(array.astype(wider) if wider else array).reshape(shape)


class Compressed:
    """A result of a constexpr operation. arguments: its operands, Weights among them; output: which result it is."""

    def __init__(self, kind: str, arguments: Mapping[str, Any], output: int, shape: Sequence[int], dtype: torch.dtype):
        self.kind, self.arguments, self.shape, self.dtype = kind, arguments, tuple(shape), dtype
        self._output, self._select = output, ROWS.get(kind)
        main = next(iter(self._parts()), None)
        self._sliced = self._select is not None and (main is None or main.by_rows) and self._select.possible(arguments)

    def _parts(self) -> list[Weight]:
        main = self._select.operand if self._select else ""
        return [value for name, value in self.arguments.items() if name == main and not _is_plain(value)]

    @property
    def by_rows(self) -> bool:
        return self._sliced and len(self.shape) > 1

    def rows(self, index: Rows) -> torch.Tensor:
        if not self.by_rows or self._select is None:
            return self.dense()[index]
        numbers = torch.arange(*index.indices(self.shape[0])) if isinstance(index, slice) else index
        arguments = {}
        for name, value in self.arguments.items():
            if name == self._select.operand:
                arguments[name] = _some(value, index)
            elif name in self._select.along and _has_rows(value):
                group = self.shape[0] // value.shape[0]
                arguments[name] = _some(value, numbers // group if group > 1 else index)
            else:
                arguments[name] = whole(value)
        result: torch.Tensor = CONSTEXPR[self.kind](**arguments)
        return result.to(self.dtype)

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        if not self.by_rows:
            result = CONSTEXPR[self.kind](**{name: whole(value) for name, value in self.arguments.items()})
            result = result[self._output] if isinstance(result, tuple) else result
            return result.to(self.dtype).to(dtype or self.dtype)
        return fill(torch.empty(self.shape, dtype=dtype or self.dtype), self, 0)


def fill(values: torch.Tensor, weight: Weight, start: int) -> torch.Tensor:
    """Write the rows of a weight from `start` on into `values`, as many as it has, a few at a time; return it."""
    step = max(_CHUNK * len(values) // max(values.numel(), 1), 1)
    for row in range(0, len(values), step):
        part = values[row : row + step]
        part.copy_(weight.rows(slice(start + row, start + row + len(part))))
    return values


def whole(value: Any) -> Any:
    """The value itself, dense where it is a Weight."""
    return value if _is_plain(value) else value.dense()


def _some(value: Any, index: Rows) -> torch.Tensor:
    part: torch.Tensor = whole(value)[index] if _is_plain(value) or not value.by_rows else value.rows(index)
    return part


def _is_plain(value: Any) -> bool:
    return not isinstance(value, Stored | Compressed)


def _has_rows(value: Any) -> bool:
    return len(getattr(value, "shape", ())) > 0 and value.shape[0] > 1


def tensor_from(values: Any, shape: Sequence[int], type: str) -> torch.Tensor:
    """An immediate value: a list of numbers, or bytes."""
    if not isinstance(values, list):
        return Stored(np.frombuffer(bytearray(values), np.uint8), shape, type).dense()
    array = np.array(values, _NUMPY[type])
    if array.size != math.prod(shape):
        raise ValueError(f"a {type} of shape {tuple(shape)} cannot have {array.size} values")
    return torch.from_numpy(array.astype(_WIDER.get(array.dtype.type, array.dtype)).reshape(tuple(shape)))


def unpack(packed: NDArray[np.uint8], count: int, bits: int, signed: bool) -> NDArray[Any]:
    """The first `count` codes of `bits` bits (1, 2, 3, 4 or 6), little end first; int8 if signed, else uint8."""
    octets = math.lcm(bits, 8) // 8  # bytes that hold a whole number of codes
    each = 8 * octets // bits
    groups = -(-count // each)
    if packed.size < groups * octets:
        packed = np.concatenate([packed, np.zeros(groups * octets - packed.size, np.uint8)])
    source = packed[: groups * octets].reshape(groups, octets)
    codes = np.empty((groups, each), np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for place in range(each):
        octet, shift = divmod(place * bits, 8)
        column = source[:, octet] >> np.uint8(shift)
        if shift + bits > 8:  # the code goes on in the next byte
            column = column | source[:, octet + 1] << np.uint8(8 - shift)
        np.bitwise_and(column, mask, out=codes[:, place])
    flat = codes.reshape(-1)[:count]
    if not signed:
        return flat
    sign = np.uint8(1 << (bits - 1))
    flat ^= sign
    flat -= sign
    return flat.view(np.int8)
