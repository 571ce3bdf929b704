"""weight.bin, written as it is read: no codes are unpacked, and no copy of a tensor outlives its write.

coremltools' own writer takes one code a byte, so that each int4 tensor is unpacked, copied and packed again. The layout
(MILBlob, version 2): a header of 64 bytes; then, for each tensor, a record of 64 bytes at a multiple of 64, and its
data.
"""

import math
import struct
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
_SENTINEL = 0xDEADBEEF
_HEADER, _RECORD = struct.Struct("<II56x"), struct.Struct("<IIQQQ32x")
_KINDS = {
    "fp16": 1,
    "fp32": 2,
    "uint8": 3,
    "int8": 4,
    "int16": 6,
    "uint16": 7,
    "int4": 8,
    "uint1": 9,
    "uint2": 10,
    "uint4": 11,
    "uint3": 12,
    "uint6": 13,
    "int32": 14,
    "uint32": 15,
}
BITS = {kind: int("".join(filter(str.isdigit, kind))) for kind in _KINDS}


class BlobWriter:
    """Writes the file path; `add` gives the offset by which a program refers to a tensor."""

    def __init__(self, path: Path):
        self._file, self._count = path.open("wb"), 0
        self._file.write(bytes(ALIGNMENT))

    def add(self, kind: str, shape: tuple[int, ...], data: NDArray[Any]) -> int:
        """Append a tensor. data: its elements, packed little end first where a code has less than a byte."""
        bits = math.prod(shape) * BITS[kind]
        if data.nbytes != (bits + 7) // 8:
            raise ValueError(f"{data.nbytes} bytes for {shape} of {kind}")
        self._pad()
        offset = self._file.tell()
        padding = 8 * data.nbytes - bits
        self._file.write(_RECORD.pack(_SENTINEL, _KINDS[kind], data.nbytes, offset + ALIGNMENT, padding))
        self._file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        self._count += 1
        return offset

    def _pad(self) -> None:
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))

    def __enter__(self) -> "BlobWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.seek(0)
            self._file.write(_HEADER.pack(self._count, 2))
        self._file.close()
