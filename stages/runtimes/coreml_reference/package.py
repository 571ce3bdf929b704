"""Reads an .mlpackage: its Model proto, and the values that lie in weight.bin.

Only coremltools' generated protobuf classes are used, and they are loaded without coremltools itself, whose import
takes ten seconds. Formats: apple/coremltools, mlmodel/format/*.proto and mlmodel/src/MILBlob/Blob/StorageFormat.hpp.
"""

import importlib
import importlib.util
import json
import os
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageError
from stages.runtimes.coreml_reference.weights import Stored, tensor_from

_RECORD = struct.Struct("<IIQQ")  # sentinel, type, bytes, offset of the bytes
_SENTINEL = 0xDEADBEEF


class ProgramError(StageError):
    """An .mlpackage that cannot be read or run: damaged, not an ML program, or with an operator that is not known."""


class UnknownOperatorError(ProgramError):
    """A program uses operators that the table lacks. The message names them all, and where they are."""


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


def shape_of(kind: Any) -> tuple[int, ...]:
    """The shape in a TensorType proto; -1 is any size."""
    return tuple(
        dimension.constant.size if dimension.WhichOneof("dimension") == "constant" else -1
        for dimension in kind.dimensions
    )


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
        return self._inside(self.path / "Data" / relative)

    def _inside(self, path: Path) -> Path:
        """The path, if it is one of the package; its files may be links into a cache. Raises ProgramError."""
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.path)):
            raise ProgramError(f"{self.path} names the file {path}, which lies outside of it")
        return path

    def value(self, value: Any) -> Any:
        """A Value proto: what lies in weight.bin as Stored, else a tensor, a string, or a list of strings."""
        if value.WhichOneof("value") == "blobFileValue":
            blob = value.blobFileValue
            return self._made(Stored, self._record(blob.fileName, blob.offset), value.type.tensorType)
        immediate = value.immediateValue
        if immediate.WhichOneof("value") == "list":
            return [self.value(item) for item in immediate.list.values]
        kind = immediate.tensor.WhichOneof("value")
        if kind == "strings":
            strings = list(immediate.tensor.strings.values)
            return strings[0] if len(strings) == 1 else strings
        values = getattr(immediate.tensor, kind).values if kind else []
        return self._made(tensor_from, values if kind == "bytes" else list(values), value.type.tensorType)

    def _made(self, make: Any, values: Any, kind: Any) -> Any:
        try:
            return make(values, shape_of(kind), type_names()[kind.dataType])
        except (ValueError, KeyError) as cause:
            raise ProgramError(f"{self.path}: {cause}") from cause

    def _record(self, name: str, offset: int) -> NDArray[np.uint8]:
        if name not in self._files:
            path = self._inside(Path(name.replace("@model_path", str(self._weights))))
            if not path.is_file():
                raise ProgramError(f"{path} is missing")
            self._files[name] = np.memmap(path, np.uint8, "c")  # as "r", but torch takes it
        file = self._files[name]
        header = file[offset : offset + _RECORD.size].tobytes()
        sentinel, _, size, start = _RECORD.unpack(header) if len(header) == _RECORD.size else (0, 0, 0, 0)
        if sentinel != _SENTINEL or start + size > len(file):
            raise ProgramError(f"{self.path}: weight.bin is damaged or cut short at byte {offset}")
        return file[start : start + size].view(np.ndarray)
