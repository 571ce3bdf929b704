"""The names that a Core ML program gives to the tensors in its weight.bin.

Read from the protobuf itself, of which six messages matter: their classes come with coremltools alone, and with a
registry of all models. Formats: apple/coremltools, mlmodel/format/Model.proto and MIL.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROGRAM = 502  # of Model
DEEPEST = 16  # blocks in blocks
Field = tuple[int, "int | bytes"]


class _Damaged(Exception):
    """Bytes that are no protobuf."""


def blob_names(model: Path) -> dict[int, str]:
    """Return {offset of a tensor's record in weight.bin: name}: its operation's output and the operand's name.

    Empty where model.mlmodel is no ML program. Of several functions that use a tensor, the first one names it.
    """
    found: dict[int, str] = {}
    try:
        for program in parts(model.read_bytes(), PROGRAM):
            for function in values(program, 2):
                for block in values(function, 3):
                    for offset, name in in_block(block, 0):
                        found.setdefault(offset, name)
    except _Damaged:
        return {}
    return unique(found)


def unique(names: dict[int, str]) -> dict[int, str]:
    """Number the second and later tensors of one name, in the order of the file."""
    seen: dict[str, int] = {}
    found = {}
    for offset in sorted(names):
        count = seen[names[offset]] = seen.get(names[offset], 0) + 1
        found[offset] = names[offset] if count == 1 else f"{names[offset]}#{count}"
    return found


def in_block(block: bytes, depth: int) -> Iterator[tuple[int, str]]:
    """Yield (offset, name) of all tensors that a block's operations hold, or blocks in them."""
    if depth > DEEPEST:
        raise _Damaged
    for operation in parts(block, 3):
        name = next((text(part) for output in parts(operation, 3) for part in parts(output, 1)), "")
        for entry in parts(operation, 5):  # attributes: {key: Value}
            yield from offsets(entry, name)
        for entry in parts(operation, 2):  # inputs: {key: Argument of bindings to a name or a Value}
            key = next(parts(entry, 1), b"")
            for argument in parts(entry, 2):
                for binding in parts(argument, 1):
                    yield from ((offset, f"{name}.{text(key)}") for offset, _ in offsets(binding, name))
        for inner in parts(operation, 4):
            yield from in_block(inner, depth + 1)


def offsets(entry: bytes, name: str) -> Iterator[tuple[int, str]]:
    key = next(parts(entry, 1), b"")
    for value in parts(entry, 2):
        for blob in parts(value, 5):
            offset = next((value for number, value in fields(blob) if number == 2), 0)
            if isinstance(offset, int):
                yield offset, f"{name}.{text(key)}"


def values(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the values of a map."""
    for entry in parts(message, number):
        yield from parts(entry, 2)


def parts(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the fields of that number that have a length: texts and messages."""
    for found, value in fields(message):
        if found == number and isinstance(value, bytes):
            yield value


def text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def fields(message: bytes) -> Iterator[Field]:
    """Yield (number, value) of a message's fields: an int for a varint, bytes for what has a length or a fixed size."""
    place = 0
    while place < len(message):
        tag, place = varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = varint(message, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, place = varint(message, place)
        else:
            length = {1: 8, 5: 4}.get(kind, -1)
        if length < 0 or place + length > len(message):
            raise _Damaged
        yield tag >> 3, message[place : place + length]
        place += length


def varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(message) and shift < 70:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise _Damaged
