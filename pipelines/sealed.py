"""JSON files that notice a changed byte: what Tapeout remembers is believed only while it is what Tapeout wrote.

A sealed file is one JSON object whose first member, "seal", is the sha256 of every byte after the seal's line; the
members follow, one a line, so that it is still JSON to everybody else and differences can be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.files import write_file

HEAD, TAIL = b'{"seal": "', b'",\n'
BODY = len(HEAD) + 64 + len(TAIL)  # where the members begin
PLAIN, SORTED = json.JSONEncoder(), json.JSONEncoder(sort_keys=True)


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` to `path`, whole or not at all. Raises StoreError."""
    write_file(path, seal(value))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what `write_sealed` wrote to `path`, or None where it is missing, cut short or any byte of it differs."""
    try:
        with open(path, "rb") as file:
            return unseal(file.read())
    except OSError:
        return None


def seal(value: Mapping[str, Any], sort: bool = False) -> bytes:
    """Return `value`, an object with names in it, as the bytes of a sealed file. sort: equal values, equal bytes."""
    body = (",\n".join(members(value, SORTED if sort else PLAIN)) + "}\n").encode()
    return HEAD + hashlib.sha256(body).hexdigest().encode() + TAIL + body


def unseal(data: bytes) -> dict[str, Any] | None:
    """Return the value in the bytes of a sealed file, or None where they are not what `seal` returned."""
    body = data[BODY:]
    if data[:BODY] != HEAD + hashlib.sha256(body).hexdigest().encode() + TAIL:
        return None
    try:
        found: dict[str, Any] = json.loads(b"{" + body)
    except ValueError:  # sealed by something else
        return None
    return found


def members(value: Mapping[str, Any], encoder: json.JSONEncoder) -> Iterator[str]:
    """Yield the members of an object, those of an object in it on lines of their own.

    (json.dumps with an indent would do it in Python code, ten times as slowly.)
    """
    for name in sorted(value) if encoder.sort_keys else value:
        inner = value[name]
        if isinstance(inner, Mapping) and inner:
            names = sorted(inner) if encoder.sort_keys else inner
            lines = ",\n  ".join(f"{encoder.encode(each)}: {encoder.encode(inner[each])}" for each in names)
            yield f" {encoder.encode(name)}: {{\n  {lines}}}"
        else:
            yield f" {encoder.encode(name)}: {encoder.encode(inner)}"
