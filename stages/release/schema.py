"""Holds a JSON value against one of this package's schemas: JSON Schema 2020-12, those of its keywords that they use.

jsonschema does all of them, and takes up to a second to import where its formats are installed: longer than the
signature of a gigabyte. tests/stages/release/test_schema.py holds both against each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

Wrong = tuple[tuple[str | int, ...], str]
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: TYPES["number"](value) and value == int(value),
}
SILENT = {"$schema", "$id", "$defs", "title", "description"}  # they say nothing of a value


def first_wrong(value: Any, schema: Mapping[str, Any]) -> Wrong | None:
    """Return where a value does not keep to a schema, and how; None where it does.

    Raises NotImplementedError for a schema with a keyword that is not known here, RecursionError for a value nested
    too deep for Python.
    """
    return next(wrongs(value, schema, schema, ()), None)


def wrongs(value: Any, schema: Any, whole: Mapping[str, Any], place: tuple[str | int, ...]) -> Iterator[Wrong]:
    """Yield all that is wrong with a value, the outermost first. whole: the schema that holds the definitions."""
    if isinstance(schema, bool):
        if not schema:
            yield place, f"{shown(value)} must not be there"
        return
    if unknown := set(schema) - set(KEYWORDS) - SILENT:
        raise NotImplementedError(f"a schema with {sorted(unknown)}")
    for name in KEYWORDS:
        if name in schema:
            yield from KEYWORDS[name](value, schema[name], schema, whole, place)


def simple(test: Callable[[Any, Any], bool], kind: str, said: str) -> Callable[..., Iterator[Wrong]]:
    """Return a keyword that is a test of values of one type. said: with {value} and {limit}."""

    def keyword(value: Any, limit: Any, _: Any, __: Any, place: tuple[str | int, ...]) -> Iterator[Wrong]:
        if (not kind or TYPES[kind](value)) and not test(value, limit):
            yield place, said.format(value=shown(value), limit=limit if isinstance(limit, str) else shown(limit))

    return keyword


def of_type(value: Any, kinds: Any) -> bool:
    return any(TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def equal(value: Any, other: Any) -> bool:
    """Say whether two plain values are the same in JSON, in which true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def required(value: Any, names: Any, _: Any, __: Any, place: tuple[str | int, ...]) -> Iterator[Wrong]:
    if isinstance(value, dict):
        yield from ((place, f"{name!r} is a required property") for name in names if name not in value)


def members(value: Any, each: Any, _: Any, whole: Any, place: tuple[str | int, ...]) -> Iterator[Wrong]:
    if isinstance(value, dict):
        for name, schema in each.items():
            if name in value:
                yield from wrongs(value[name], schema, whole, (*place, name))


def others(value: Any, schema: Any, around: Any, whole: Any, place: tuple[str | int, ...]) -> Iterator[Wrong]:
    if isinstance(value, dict):
        for name in value:
            if name not in around.get("properties", {}):
                if schema is False:
                    yield place, f"{name!r} was unexpected"
                else:
                    yield from wrongs(value[name], schema, whole, (*place, name))


def items(value: Any, schema: Any, _: Any, whole: Any, place: tuple[str | int, ...]) -> Iterator[Wrong]:
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from wrongs(each, schema, whole, (*place, number))


def reference(value: Any, name: str, _: Any, whole: Any, place: tuple[str | int, ...]) -> Iterator[Wrong]:
    yield from wrongs(value, whole["$defs"][name.removeprefix("#/$defs/")], whole, place)


def any_of(value: Any, schemas: Any, _: Any, whole: Any, place: tuple[str | int, ...]) -> Iterator[Wrong]:
    if all(next(wrongs(value, each, whole, place), None) for each in schemas):
        yield place, f"{shown(value)} is none of what it may be"


def none_of(value: Any, schema: Any, _: Any, whole: Any, place: tuple[str | int, ...]) -> Iterator[Wrong]:
    if next(wrongs(value, schema, whole, place), None) is None:
        yield place, f"{shown(value)} is what it must not be"


@cache
def pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def shown(value: Any) -> str:
    """Return a value for a message: not all of it, where it is large."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


KEYWORDS: dict[str, Callable[..., Iterator[Wrong]]] = {
    "$ref": reference,
    "type": simple(of_type, "", "{value} is not of type {limit}"),
    "const": simple(equal, "", "{limit} was expected, not {value}"),
    "enum": simple(lambda value, of: any(equal(value, each) for each in of), "", "{value} is not one of {limit}"),
    "required": required,
    "additionalProperties": others,
    "properties": members,
    "minProperties": simple(lambda value, limit: len(value) >= limit, "object", "fewer than {limit} members"),
    "items": items,
    "minItems": simple(lambda value, limit: len(value) >= limit, "array", "fewer than {limit} items"),
    "maxItems": simple(lambda value, limit: len(value) <= limit, "array", "more than {limit} items"),
    "minLength": simple(lambda value, limit: len(value) >= limit, "string", "{value} is shorter than {limit}"),
    "maxLength": simple(lambda value, limit: len(value) <= limit, "string", "{value} is longer than {limit}"),
    "pattern": simple(lambda value, text: bool(pattern(text).search(value)), "string", "{value} is not like {limit}"),
    "minimum": simple(lambda value, limit: value >= limit, "number", "{value} is less than {limit}"),
    "maximum": simple(lambda value, limit: value <= limit, "number", "{value} is more than {limit}"),
    "anyOf": any_of,
    "not": none_of,
}
