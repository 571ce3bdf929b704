"""What a stage's function is given, by the names of its parameters."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import typed
from pipelines.errors import StageError
from pipelines.execute import Task
from pipelines.workspace import Workspace


def invoke(task: Task, work: Workspace) -> None:
    """Call the stage function with what its parameters ask for."""
    module, _, name = task.run.rpartition(".")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise StageError(f"run: {task.run}: module {module} has no function {name}")
    hints = typing.get_type_hints(function)
    given: dict[str, Any] = {}
    for parameter, declared in inspect.signature(function).parameters.items():
        if parameter == "work":
            given[parameter] = work
        elif parameter == "config":
            given[parameter] = settings(task)
        elif parameter == "device":
            given[parameter] = profile(task, parameter, task.device or {})
        elif parameter == "devices" and task.profiles is not None:
            given[parameter] = {name: profile(task, f"devices['{name}']", each) for name, each in task.profiles.items()}
        elif parameter in task.inputs:
            kind = artifact_type(hints.get(parameter))
            given[parameter] = kind(task.inputs[parameter]) if kind else task.inputs[parameter]
        elif declared.default is inspect.Parameter.empty:
            raise StageError(
                f"{task.run} has a parameter '{parameter}', which the pipeline does not give it",
                hint=f"give stage {task.node} `{declaration(parameter)}`",
            )
    function(**given)
    check_output(task.run, work.out)


def declaration(parameter: str) -> str:
    """Return what a stage's declaration lacks that is to be given `parameter`."""
    return "devices: true" if parameter == "devices" else f"needs: {{{parameter}: STAGE}}"


def artifact_type(hint: Any) -> type | None:
    """Return the class that an input is wrapped in: of `Calibration | None`, Calibration."""
    kinds = [each for each in typing.get_args(hint) or (hint,) if isinstance(each, type) and each is not type(None)]
    return kinds[0] if len(kinds) == 1 else None


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

    schema = schemas(task).get(task.config_group or "")
    return typed.build(task.config or {}, schema) if schema else OmegaConf.create(dict(task.config or {}))


def profile(task: Task, called: str, values: Mapping[str, Any]) -> Any:
    """Return a device's profile with the fields that the stage has declared; reading another one is an error.

    Were it not, two devices that differ there would wrongly share a node. called: what the stage calls the profile.
    """
    values = dict(values)
    schema = schemas(task).get("device", object)
    names = {field.name for field in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else set()

    def read(self: object, name: str) -> Any:
        if name in names and name not in values:
            raise StageError(f"{task.run} reads {called}.{name}", hint=f"declare it: device_fields: [..., {name}]")
        return object.__getattribute__(self, name)

    limited = type(schema.__name__, (schema,), {"__getattribute__": read})
    instance: Any = object.__new__(limited)
    vars(instance).update(typed.build_part(values, schema) if names else values)
    return instance


def schemas(task: Task) -> dict[str, Any]:
    """Return the {group: dataclass} mapping of the pipeline."""
    if task.schemas is None:
        return {}
    module, _, name = task.schemas.rpartition(".")
    return dict(getattr(importlib.import_module(module), name))
