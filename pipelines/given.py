"""What a stage's function is given, by the names of its parameters; and what a function is that a stage maps."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import shutil
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import typed
from pipelines.errors import StageError
from pipelines.execute import Task
from pipelines.mapping import as_json, folder_of, with_empty_out
from pipelines.workspace import Workspace

Available = Mapping[str, Callable[[Any], Any]]  # {parameter: what gives its value, told the parameter's type}


def invoke(task: Task, work: Workspace) -> str:
    """Call the function of a stage or, for one of its items, of a map. Return an item's result as JSON, else ""."""
    if task.item is None:
        call(task.run, available(task, work), lambda parameter: declaration(task, parameter))
        check_output(task.run, work.out)
        return ""
    item = task.item
    own: Available = {"item": lambda hint: json.loads(item.text), "work": lambda hint: with_empty_out(work)}
    given = {**available(task, work), **own}
    result = as_json(task.run, call(task.run, given, lambda parameter: declaration(task, parameter)))
    if not item.folders:
        shutil.rmtree(folder_of(task), ignore_errors=True)
    return result


def call(name: str, available: Available, hint: Callable[[str], str]) -> Any:
    """Call the function `name` with what its parameters ask for. hint: what to do about one that nobody gives."""
    module, _, attribute = name.rpartition(".")
    function = getattr(importlib.import_module(module), attribute, None)
    if not callable(function):
        raise StageError(f"{name}: module {module} has no function {attribute}")
    hints = typing.get_type_hints(function)
    given: dict[str, Any] = {}
    for parameter, declared in inspect.signature(function).parameters.items():
        if parameter in available:
            given[parameter] = available[parameter](hints.get(parameter))
        elif declared.default is inspect.Parameter.empty:
            raise StageError(
                f"{name} has a parameter '{parameter}', which the pipeline does not give it", hint=hint(parameter)
            )
    return function(**given)


def available(task: Task, work: Workspace) -> Available:
    """Return what a stage's function can ask for."""
    found: dict[str, Callable[[Any], Any]] = {
        **{parameter: partial(wrapped, path) for parameter, path in task.inputs.items()},
        "work": lambda hint: work,
        "config": lambda hint: settings(task),
        "device": lambda hint: profile(task, "device", task.device or {}),
    }
    if task.profiles is not None:
        profiles = task.profiles
        found["devices"] = lambda hint: {
            name: profile(task, f"devices['{name}']", each) for name, each in profiles.items()
        }
    return found


def declaration(task: Task, parameter: str) -> str:
    """Return what to do about a parameter that nobody gives."""
    if parameter == "item":
        return "only a function that a stage maps has items: work.map(FUNCTION, ITEMS)"
    wanted = "devices: true" if parameter == "devices" else f"needs: {{{parameter}: STAGE}}"
    return f"give stage {task.node} `{wanted}`"


def wrapped(path: Path, hint: Any) -> Any:
    """Return an input as the class that the parameter's type names: for `Calibration | None`, a Calibration."""
    kinds = [each for each in typing.get_args(hint) or (hint,) if isinstance(each, type) and each is not type(None)]
    return kinds[0](path) if len(kinds) == 1 else path


def check_output(run: str, out: Path) -> None:
    """Raise StageError where a stage has left nothing, or what is not a plain file."""
    left = [path for path in sorted(out.rglob("*")) if path.is_symlink() or not path.is_dir()]
    if not left:
        raise StageError(f"{run} left no file in its output folder", hint="a stage writes its artifact to work.out")
    for path in left:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            name = ascii(str(path.relative_to(out)))
            raise StageError(f"{run} left {name}, and a file's name must be UTF-8") from error
        if path.is_symlink() or not path.is_file():
            raise StageError(f"{run} left {path.relative_to(out)}, which is not a plain file")


def settings(task: Task) -> Any:
    """Return the stage's configuration as its dataclass, or with attribute access where it has none."""
    from omegaconf import OmegaConf

    schema, values = schemas(task).get(task.config_group or ""), dict(task.config or {})
    if schema is None:
        return OmegaConf.create(values)
    return limited(task, "config", values, schema, "config_fields")


def profile(task: Task, called: str, values: Mapping[str, Any]) -> Any:
    """Return a device's profile with the fields that the stage has declared. called: what the stage calls it."""
    schema = schemas(task).get("device", object)
    return limited(task, called, dict(values), schema, "device_fields")


def limited(task: Task, called: str, values: dict[str, Any], schema: type, key: str) -> Any:
    """Return an instance of `schema` with the fields in `values`; reading another one is an error.

    Were it not, a node would depend on what is not in its key. called: what the stage calls it; key: what declares its
    fields.
    """
    names = {field.name for field in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else set()
    if names and names <= set(values):
        return typed.build(values, schema)

    def read(self: object, name: str) -> Any:
        if name in names and name not in values:
            raise StageError(f"{task.run} reads {called}.{name}", hint=f"declare it: {key}: [..., {name}]")
        return object.__getattribute__(self, name)

    part = type(schema.__name__, (schema,), {"__getattribute__": read})
    instance: Any = object.__new__(part)
    vars(instance).update(typed.build_part(values, schema) if names else values)
    return instance


def schemas(task: Task) -> dict[str, Any]:
    """Return the {group: dataclass} mapping of the pipeline."""
    if task.schemas is None:
        return {}
    module, _, name = task.schemas.rpartition(".")
    return dict(getattr(importlib.import_module(module), name))
