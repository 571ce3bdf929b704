"""safetensors files, checked when read and written to the same bytes whatever the order of writing.

The format (github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header
{name: {"dtype", "shape", "data_offsets": [begin, end]}}, then the tensors' bytes without gaps.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StoreError, TapeoutError

ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
NUMPY_TYPES = {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64}
_NAMES_OF_TYPES = {np.dtype(numpy_type): name for name, numpy_type in NUMPY_TYPES.items()}
_HEADER_LIMIT = 100_000_000
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: dtype as safetensors names it, begin and end in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path, error: type[TapeoutError] = StoreError) -> dict[str, TensorEntry]:
    """The tensors of the safetensors file at path, without reading their values.

    Raises `error` where the file is missing, is another kind of file, is truncated, or contradicts itself.
    """
    if not path.is_file():
        raise error(f"{path.name} is missing in {path.parent}", hint=f"Expected a safetensors file at {path}.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        _refuse_other_kinds(path, start, error)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > size - 8:
            raise error(
                f"{path} is truncated: its header needs {length + 8:,} bytes, the file has {size:,}",
                hint="Copy or download it again, and compare its size and checksum with the source.",
            )
        file.seek(8)
        raw = file.read(min(length, _HEADER_LIMIT))
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        entries = {name: _entry(value, 8 + length) for name, value in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as cause:
        raise error(
            f"{path} is not a safetensors file: its header is no valid JSON table of tensors ({cause})",
            hint="Copy or download it again, or save the model anew with safetensors.torch.save_file.",
        ) from cause
    _check_extent(path, entries, 8 + length, size, error)
    return entries


def _refuse_other_kinds(path: Path, start: bytes, error: type[TapeoutError]) -> None:
    kinds = {
        b"PK\x03\x04": "a zip archive, as torch.save writes",
        b"\x80\x02": "a Python pickle",
        b"\x80\x03": "a Python pickle",
        b"\x80\x04": "a Python pickle",
        b"\x80\x05": "a Python pickle",
        b"\x89HDF": "an HDF5 file",
        b"GGUF": "a GGUF file",
        b"version ": "a Git LFS pointer, not the file itself",
    }
    if start[8:] == b"{":  # every safetensors header begins so, and its length may look like another kind's magic
        return
    for magic, kind in kinds.items():
        if start.startswith(magic):
            raise error(f"{path} is {kind}; expected a safetensors file", hint=_conversion(kind))


def _conversion(kind: str) -> str:
    if "LFS" in kind:
        return "Fetch the contents with `git lfs pull`."
    if "zip" in kind or "pickle" in kind:
        return (
            "It was not opened, since a pickle can run any code. If you trust where it comes from, convert it with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')."
        )
    return "Convert it to safetensors with the tool that wrote it."


def _entry(value: dict[str, Any], data: int) -> TensorEntry:
    dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    if dtype not in ITEM_SIZES:
        raise ValueError(f"unknown dtype {dtype!r}")
    if not all(type(extent) is int and extent >= 0 for extent in (*shape, begin, end)):
        raise ValueError("a shape or offset is not a non-negative integer")
    if end - begin != math.prod(shape) * ITEM_SIZES[dtype]:
        raise ValueError(f"{end - begin} bytes for {dtype} of shape {list(shape)}")
    return TensorEntry(dtype, shape, data + begin, data + end)


def _check_extent(path: Path, entries: dict[str, TensorEntry], data: int, size: int, error: type[TapeoutError]) -> None:
    position = data
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise error(
                f"{path} is damaged: tensor '{name}' begins at byte {entry.begin}, expected {position}",
                hint="Copy or download it again, and compare its checksum with the source.",
            )
        position = entry.end
    if position != size:
        found = "truncated" if size < position else "followed by bytes that belong to no tensor"
        raise error(
            f"{path} is {found}: {size:,} bytes found, {position:,} expected from its header",
            hint="Copy or download it again, and compare its size and checksum with the source.",
        )


class TensorReader:
    """A safetensors file mapped into memory. Arrays are read-only views of it; bfloat16 becomes float32."""

    def __init__(self, path: Path, error: type[TapeoutError] = StoreError):
        self.entries = read_header(path, error)
        self._path, self._error = path, error
        self._bytes = np.memmap(path, np.uint8, "r")

    def array(self, name: str) -> NDArray[Any]:
        """The tensor `name`. Raises `error` where there is none."""
        entry = self.entries.get(name)
        if entry is None:
            raise self._error(f"{self._path} holds no tensor '{name}'", hint="The file and its description differ.")
        return as_array(self._bytes[entry.begin : entry.end], entry.dtype).reshape(entry.shape)


def as_array(data: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Little-endian bytes as an array of one axis: a view, but for BF16, which becomes float32 (exactly)."""
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(NUMPY_TYPES[dtype])


def layout_of(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, TensorEntry]]:
    """The first bytes of a file that holds `tensors` {name: (dtype, shape)}, and where each lies in it.

    Wide items come first, so that every tensor is aligned to its own size; then by name.
    """
    spans: dict[str, tuple[int, int]] = {}
    position = 0
    for name in sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name][0]], name)):
        dtype, shape = tensors[name]
        spans[name] = position, position + math.prod(shape) * ITEM_SIZES[dtype]
        position = spans[name][1]
    header = {
        name: {"data_offsets": list(span), "dtype": tensors[name][0], "shape": list(tensors[name][1])}
        for name, span in spans.items()
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    data = 8 + len(text)
    entries = {name: TensorEntry(*tensors[name], data + begin, data + end) for name, (begin, end) in spans.items()}
    return len(text).to_bytes(8, "little") + text, entries


class PlannedWriter:
    """Writes a safetensors file whose tensors are known beforehand, each once to its place; same bytes as TensorWriter.

    tensors: {name: (dtype, shape)}. The file appears, whole, on `close`; leaving by an error leaves none.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]):
        start, self.entries = layout_of(tensors)
        self.path, self._partial = path, path.with_name(path.name + ".partial")
        self._file = self._partial.open("wb")
        self._file.write(start)
        self._left = {name: entry.end - entry.begin for name, entry in self.entries.items()}

    def order(self) -> list[str]:
        """The names in the order of the file, in which writing is fastest."""
        return sorted(self.entries, key=lambda name: self.entries[name].begin)

    def write(self, name: str, data: memoryview | bytes) -> None:
        """The next of the tensor's little-endian bytes. Raises StoreError for more than it has."""
        entry, size = self.entries[name], memoryview(data).nbytes
        if size > self._left[name]:
            raise StoreError(f"tensor '{name}' got more bytes than it has in {self.path}")
        self._file.seek(entry.end - self._left[name])
        self._file.write(data)
        self._left[name] -= size

    def close(self) -> None:
        """Let the file appear. Raises StoreError where a tensor is not whole."""
        missing = [name for name, left in self._left.items() if left]
        self._file.close()
        if missing:
            self._partial.unlink()
            raise StoreError(f"{self.path}: {len(missing)} tensors were not written, the first of them {missing[0]}")
        self._partial.replace(self.path)

    def __enter__(self) -> "PlannedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
            self._partial.unlink(missing_ok=True)


class TensorWriter:
    """Writes a safetensors file, tensor by tensor and in any order, to the bytes that sorted names give.

    Tensors are spooled beside the file, so memory holds one at a time; the file appears, whole, on `close`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._entries: dict[str, TensorEntry] = {}
        self._spool_path = path.with_name(path.name + ".spool")
        self._spool = self._spool_path.open("w+b")

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Add a tensor of a type in NUMPY_TYPES, under a name not yet used."""
        flat = np.ascontiguousarray(array).reshape(-1)  # which makes a scalar's shape (1,)
        self.add_bytes(name, _NAMES_OF_TYPES[array.dtype], array.shape, flat.view(np.uint8).data)

    def add_bytes(self, name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        """Add a tensor by its little-endian bytes; dtype as safetensors names it."""
        if name in self._entries:
            raise StoreError(f"tensor '{name}' was written twice to {self.path}")
        begin = self._spool.tell()
        self._spool.write(data)
        self._entries[name] = TensorEntry(dtype, shape, begin, self._spool.tell())

    def close(self) -> None:
        """Write the file."""
        start, places = layout_of({name: (entry.dtype, entry.shape) for name, entry in self._entries.items()})
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("wb") as file:
            file.write(start)
            for name in sorted(places, key=lambda name: (places[name].begin, places[name].end)):
                self._copy(self._entries[name], file)
        partial.replace(self.path)
        self.discard()

    def _copy(self, entry: TensorEntry, file: Any) -> None:
        self._spool.seek(entry.begin)
        remaining = entry.end - entry.begin
        while remaining:
            block = self._spool.read(min(remaining, 1 << 24))
            file.write(block)
            remaining -= len(block)

    def discard(self) -> None:
        """Remove the spool; without `close` before it, no file is left."""
        self._spool.close()
        self._spool_path.unlink(missing_ok=True)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def copy_file(source: Path, target: Path) -> None:
    """Copy contents only, so that modes and times of the source do not travel."""
    shutil.copyfile(source, target)
