"""Values of the configuration against their types: a group's dataclass says which keys there are and of what kind."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, nearest, suggestion


def check(where: str, group: str, value: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """Return `value` in its normal form: of the types that `schema` gives, as JSON can hold it.

    where: the file that the group came from, for messages. Raises ConfigError for unknown, missing and ill-typed keys.
    """
    from omegaconf import OmegaConf  # heavy for a start-up that often does without
    from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

    try:
        typed = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(value)))
        missing = sorted(OmegaConf.missing_keys(typed))
        if missing:
            raise ConfigError(f"{where}: {group}.{missing[0]} has no value", hint=f"set it: {group}.{missing[0]}=...")
        found = OmegaConf.to_container(typed, resolve=True, enum_to_str=True)
    except ConfigKeyError as error:
        raise unknown_key(where, group, str(error.full_key), schema) from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{where}: {group}.{error.full_key} has no value") from error
    except ValidationError as error:
        key = ".".join(filter(None, (group, str(error.full_key or ""))))
        hint = choices(error) or expected(schema, error.full_key)
        raise ConfigError(f"{where}: {key}: {first_line(error)}", hint=hint) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {group}: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: {group} must be a mapping")
    return {str(key): plain(each) for key, each in finite(where, group, found).items()}


def check_untyped(where: str, group: str, value: Any) -> Any:
    """Return `value`, a group that has no schema, as JSON can hold it. Raises ConfigError."""
    return plain(finite(where, group, value))


def finite(where: str, key: str, value: Any) -> Any:
    """Return `value`. Raises ConfigError where a number in it is infinite or none: no key could be made of it."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {key} is {value}, which is not a finite number", hint=f"set it: {key}=NUMBER")
    if isinstance(value, Mapping):
        for name, each in value.items():
            finite(where, f"{key}.{name}", each)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            finite(where, f"{key}[{index}]", each)
    return value


def build(value: Mapping[str, Any], schema: type) -> Any:
    """Return `schema`'s instance for a value that `check` has returned."""
    return schema(**build_part(value, schema))


def build_part(value: Mapping[str, Any], schema: type) -> dict[str, Any]:
    """Return the fields in `value` as `schema`'s instance would have them, without those that are not in `value`."""
    hints = typing.get_type_hints(schema)
    return {name: of_type(each, hints[name]) for name, each in value.items()}


def of_type(value: Any, kind: Any) -> Any:
    """Return a checked value as its declared type has it: an Enum's member, a dataclass, a tuple, a path."""
    if value is None:
        return None
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next((each for each in typing.get_args(kind) if each is not type(None)), Any)
    arguments = typing.get_args(kind)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(kind):
        return build(value, typing.cast(type, kind))
    if isinstance(value, Mapping):
        return {key: of_type(each, arguments[1] if len(arguments) == 2 else Any) for key, each in value.items()}
    if isinstance(value, list):
        items = [of_type(each, arguments[0] if arguments else Any) for each in value]
        return tuple(items) if typing.get_origin(kind) is tuple else items
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[value]
    return kind(value) if kind in (Path, float) else value


def unknown_key(where: str, group: str, key: str, schema: type) -> ConfigError:
    """Return the error for a key that `schema` does not have."""
    parts = re.sub(r"\[[^]]*\]", "", key).split(".")
    kind: Any = schema
    for part in parts[:-1]:
        kind = element(typing.get_type_hints(kind).get(part)) if dataclasses.is_dataclass(kind) else None
    known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    title = f"{'.'.join([group, *parts[:-1]])} has"
    return ConfigError(f"{where}: unknown key {group}.{key}", hint=suggestion(parts[-1], known, title))


def element(kind: Any) -> Any:
    """Return the type of what a key holds or, where it holds several, of each."""
    arguments = [each for each in typing.get_args(kind) if each is not type(None)]
    return element(arguments[-1]) if arguments else kind


def expected(schema: type, key: Any) -> str:
    """Return what `schema` declares for `key`, in words."""
    types = {field.name: field.type for field in dataclasses.fields(schema)}
    name = str(key or "").partition(".")[0].partition("[")[0]
    kind = types.get(name)
    return f"expected {getattr(kind, '__name__', kind)}" if kind is not None else ""


def choices(error: Exception) -> str:
    """Return the nearest of the values that an Enum has, where the error is of one that it has not."""
    found = re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", first_line(error))
    return nearest(found[1], found[2].split(", ")) if found else ""


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it (a Path becomes text)."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
