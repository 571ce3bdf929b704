"""Where the tensors lie in a bundle's file, so that a delta compares each with its older self.

    decoder.onnx.data   ONNX's external data: the graph beside it says name, offset, length and type
    weight.bin          Core ML's blob storage (MILBlob, version 2); model.mlmodel beside it says the names
    *.safetensors       its own header
    all else            one opaque segment

Nothing here decides what a delta's bytes mean: a layout that is not understood makes one opaque segment, and a larger
delta. So it is never an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from pipelines.errors import StoreError
from stages.release.deltas.blob_names import blob_names


class Element(IntEnum):
    """What a segment consists of, by the bits of one element; OPAQUE is text, a graph, or not known."""

    OPAQUE = 0
    BITS_4 = 4  # two a byte, the low half first
    BITS_8 = 8
    BITS_16 = 16  # an integer, or a float's bits
    BITS_32 = 32


@dataclass(frozen=True)
class Segment:
    """A part of a file. name: pairs it with the same tensor of another release. offset, length: in bytes."""

    name: str
    offset: int
    length: int
    element: Element


EXTERNAL_DATA = (".data", ".bin", ".weights", ".prepacked")  # how files of ONNX's external data end
ONNX_BITS = {
    **{kind: 4 for kind in (21, 22, 23)},  # UINT4, INT4, FLOAT4E2M1
    **{kind: 8 for kind in (2, 3, 9, 17, 18, 19, 20)},  # UINT8, INT8, BOOL, the FLOAT8s
    **{kind: 16 for kind in (4, 5, 10, 16)},  # UINT16, INT16, FLOAT16, BFLOAT16
    **{kind: 32 for kind in (1, 6, 12)},  # FLOAT, INT32, UINT32
}  # TensorProto.DataType in onnx/onnx.proto
BLOB_BITS = {1: 16, 2: 32, 3: 8, 4: 8, 5: 16, 6: 16, 7: 16, 8: 4, 11: 4, 14: 32, 15: 32}  # of MILBlob's data types
BLOB_HEADER, BLOB_RECORD = struct.Struct("<II56x"), struct.Struct("<IIQQQ32x")
SENTINEL = 0xDEADBEEF
SAFETENSORS_BITS = {1: 8, 2: 16, 4: 32}  # by the bytes of an element


def segments(path: Path, name: str, context: Path | None) -> list[Segment]:
    """Return the segments of a file, in order, without gaps from its first byte to its last.

    name: its path in the bundle. context: the bundle's folder, in which its graph lies; None where there is none.
    """
    size = path.stat().st_size
    return whole(_tensors(path, name, context), size)


def whole(tensors: Iterable[Segment], size: int) -> list[Segment]:
    """Return the tensors in the order of their offsets, and opaque segments for what lies between them.

    A tensor that overlaps one before it, or ends behind the file, is left out.
    """
    found: list[Segment] = []
    end = 0
    for tensor in sorted(tensors, key=lambda each: (each.offset, -each.length, each.name)):
        if tensor.offset < end or tensor.length < 1 or tensor.offset + tensor.length > size:
            continue
        if tensor.offset > end:
            found.append(Segment(f"before {tensor.name}", end, tensor.offset - end, Element.OPAQUE))
        found.append(tensor)
        end = tensor.offset + tensor.length
    if end < size:
        found.append(Segment("end" if found else "all", end, size - end, Element.OPAQUE))
    return found


def _tensors(path: Path, name: str, context: Path | None) -> list[Segment]:
    if name.endswith(".safetensors"):
        return list(_safetensors(path))
    if name.endswith("/weights/weight.bin"):
        graph = context / Path(name).parent.parent / "model.mlmodel" if context else None
        return list(_blobs(path, blob_names(graph) if graph and graph.is_file() else {}))
    if context and name.endswith(EXTERNAL_DATA):
        return _external_data((context / name).parent, Path(name).name)
    return []


def _external_data(folder: Path, name: str) -> list[Segment]:
    """The tensors that a graph of the folder says to lie in the file."""
    from google.protobuf.message import DecodeError

    for path in sorted(folder.glob("*.onnx"), key=lambda path: (not name.startswith(path.name), path.name)):
        import onnx

        try:
            graph = onnx.load_model(path, load_external_data=False).graph
        except DecodeError:
            continue
        packed = _packed(graph.node)
        if found := [each for tensor in graph.initializer if (each := _placed(tensor, name, packed))]:
            return found
    return []


def _packed(nodes: Iterable[Any]) -> set[str]:
    """Names of the tensors of bytes that hold two codes each: operands of com.microsoft's operators for 4 bits."""
    return {
        operand
        for node in nodes
        for attribute in node.attribute
        if attribute.name == "bits" and attribute.i == 4
        for operand in node.input
    }


def _placed(tensor: Any, file: str, packed: set[str]) -> Segment | None:
    place = {entry.key: entry.value for entry in tensor.external_data}
    if place.get("location") != file or not (place.get("offset", "0") + place.get("length", "")).isdecimal():
        return None
    bits = ONNX_BITS.get(tensor.data_type, 8)
    if bits == 8 and tensor.name in packed:
        bits = 4
    return Segment(tensor.name, int(place.get("offset", "0")), int(place.get("length", "0")), Element(bits))


def _blobs(path: Path, names: dict[int, str]) -> Iterator[Segment]:
    """The tensors of a weight.bin. names: by the offset of a tensor's record; others are named by type and place."""
    with path.open("rb") as file:
        header = file.read(BLOB_HEADER.size)
        count, version = BLOB_HEADER.unpack(header) if len(header) == BLOB_HEADER.size else (0, 0)
        if version != 2:
            return
        offset = BLOB_HEADER.size
        for number in range(count):
            file.seek(offset)
            record = file.read(BLOB_RECORD.size)
            if len(record) < BLOB_RECORD.size:
                return
            sentinel, kind, length, start, _ = BLOB_RECORD.unpack(record)
            if sentinel != SENTINEL or start < offset:
                return
            yield Segment(names.get(offset, f"{kind} at {number}"), start, length, Element(BLOB_BITS.get(kind, 8)))
            offset = -(-(start + length) // BLOB_HEADER.size) * BLOB_HEADER.size


def _safetensors(path: Path) -> Iterator[Segment]:
    from stages.tensorfile import ITEM_SIZES, read_header

    try:
        entries = read_header(path)
    except StoreError:
        return
    for name, entry in entries.items():
        bits = SAFETENSORS_BITS.get(ITEM_SIZES.get(entry.dtype, 1), 32)
        yield Segment(name, entry.begin, entry.end - entry.begin, Element(bits))
