"""Reads an .mlpackage: its Model proto, and the values that lie in weight.bin.

Only coremltools' generated protobuf classes are used, and they are loaded without coremltools itself, whose import
takes ten seconds. Formats: apple/coremltools, mlmodel/format/*.proto and mlmodel/src/MILBlob/Blob/StorageFormat.hpp.
"""

import importlib
import importlib.util
import json
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import StageError

_RECORD = struct.Struct("<IIQQ")  # sentinel, type, bytes, offset of the bytes
_SENTINEL = 0xDEADBEEF
_NUMPY = {
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
_UNPACK_CHUNK = 1 << 18  # groups of eight codes unpacked at a time


class ProgramError(StageError):
    """An .mlpackage that cannot be read or run: damaged, not an ML program, or with an operator that is not known."""


@cache
def model_format() -> Any:
    """The module Model_pb2, from coremltools' folder but without coremltools' own import."""
    name = "coreml_model_format"
    home = importlib.util.find_spec("coremltools")
    if home is None or not home.submodule_search_locations:
        raise ProgramError(
            "coremltools is not installed", hint="Its protobuf classes are needed: pip install coremltools."
        )
    folder = Path(home.submodule_search_locations[0]) / "proto"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.Model_pb2")


@cache
def type_names() -> dict[int, str]:
    program = importlib.import_module("coreml_model_format.MIL_pb2")
    return {number: name for name, number in program.DataType.items()}


class Package:
    """An opened .mlpackage. `model`: the Model proto. Raises ProgramError for one that is damaged or no program."""

    def __init__(self, path: Path):
        self.path = Path(path)
        specification = self._specification()
        self._weights = specification.parent
        self._files: dict[str, NDArray[np.uint8]] = {}
        self.model = model_format().Model()
        try:
            self.model.ParseFromString(specification.read_bytes())
        except Exception as cause:  # protobuf's DecodeError differs between its implementations
            raise ProgramError(f"{specification} is damaged: {cause}") from cause
        if self.model.WhichOneof("Type") != "mlProgram":
            raise ProgramError(
                f"{self.path} holds a {self.model.WhichOneof('Type') or 'nothing'}, expected an mlProgram",
                hint='Convert with convert_to="mlprogram".',
            )

    def _specification(self) -> Path:
        manifest = self.path / "Manifest.json"
        try:
            entries = json.loads(manifest.read_text(encoding="utf-8"))
            relative = str(entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"])
        except FileNotFoundError:
            raise ProgramError(f"{manifest} is missing", hint="Expected the folder of an .mlpackage.") from None
        except (ValueError, KeyError, TypeError) as cause:
            raise ProgramError(f"{manifest} is damaged: {cause!r}") from cause
        return self.path / "Data" / relative

    def value(self, value: Any) -> Any:
        """A Value proto as a tensor, a string, or a list of strings. Codes of less than 8 bits come one a byte."""
        if value.WhichOneof("value") == "blobFileValue":
            blob = value.blobFileValue
            return self._tensor(value.type.tensorType, self._record(blob.fileName, blob.offset))
        immediate = value.immediateValue
        if immediate.WhichOneof("value") == "list":
            return [self.value(item) for item in immediate.list.values]
        kind = immediate.tensor.WhichOneof("value")
        if kind == "strings":
            strings = list(immediate.tensor.strings.values)
            return strings[0] if len(strings) == 1 else strings
        values = getattr(immediate.tensor, kind).values
        return self._tensor(value.type.tensorType, values if kind == "bytes" else list(values))

    def _tensor(self, kind: Any, values: Any) -> torch.Tensor:
        shape = tuple(dimension.constant.size for dimension in kind.dimensions)
        count = int(np.prod(shape, dtype=np.int64))
        name = type_names()[kind.dataType]
        array: NDArray[Any]
        if isinstance(values, list):
            array = np.array(values, _NUMPY[name])
        elif name in _PACKED:
            array = unpack(np.frombuffer(values, np.uint8), count, *_PACKED[name])
        else:
            array = np.frombuffer(values, _NUMPY[name])
        if array.size != count:
            raise ProgramError(f"{self.path}: a {name} of shape {shape} has {array.size} values")
        wide = {np.uint16: np.int32, np.uint32: np.int64}.get(array.dtype.type, array.dtype)
        return torch.from_numpy(np.array(array, dtype=wide).reshape(shape))  # a copy: the mapped file is read-only

    def _record(self, name: str, offset: int) -> NDArray[np.uint8]:
        if name not in self._files:
            path = Path(name.replace("@model_path", str(self._weights)))
            if not path.is_file():
                raise ProgramError(f"{path} is missing")
            self._files[name] = np.memmap(path, np.uint8, "r")
        file = self._files[name]
        header = file[offset : offset + _RECORD.size].tobytes()
        sentinel, _, size, start = _RECORD.unpack(header) if len(header) == _RECORD.size else (0, 0, 0, 0)
        if sentinel != _SENTINEL or start + size > len(file):
            raise ProgramError(f"{self.path}: weight.bin is damaged or cut short at byte {offset}")
        return file[start : start + size]


def unpack(packed: NDArray[np.uint8], count: int, bits: int, signed: bool) -> NDArray[Any]:
    """The first `count` codes of `bits` bits (1, 2, 3, 4 or 6), little end first; int8 if signed, else uint8.

    Eight codes fill `bits` bytes exactly, so that each such group is one integer, and its codes are shifts of it.
    """
    groups = -(-count // 8)
    padded = np.zeros(groups * bits, np.uint8)
    padded[: min(packed.size, padded.size)] = packed[: padded.size]
    codes = np.empty((groups, 8), np.uint8)
    for start in range(0, groups, _UNPACK_CHUNK):
        stop = min(start + _UNPACK_CHUNK, groups)
        octets = np.zeros((stop - start, 8), np.uint8)
        octets[:, :bits] = padded[start * bits : stop * bits].reshape(-1, bits)
        words = octets.view("<u8")
        shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
        codes[start:stop] = (words >> shifts) & np.uint64((1 << bits) - 1)
    flat = codes.reshape(-1)[:count]
    if not signed:
        return flat
    sign = np.uint8(1 << (bits - 1))
    return ((flat ^ sign) - sign).view(np.int8)
