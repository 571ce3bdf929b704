"""The configuration: composed by Hydra from conf/ and the command line, checked against its types."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import typed
from pipelines.errors import ConfigError, PlanError, suggestion
from pipelines.project import Project
from pipelines.spec import PipelineSpec, read_pipeline

TRACKERS = ("mlflow", "none")
RESERVED = ("build", "reference")  # folders of artifacts/, where a device's bundle lies under its name


@dataclass
class LocalConfig:
    """Processes on this machine. jobs: how many, None for one a core. memory_mib: what they may take together, None for
    what is free. retries: how often a node is tried again whose process was killed."""

    kind: str
    jobs: int | None
    memory_mib: int | None
    retries: int


@dataclass
class RayConfig:
    """A Ray cluster. address: of a running one, None to start one here of `local_nodes` nodes.

    store: "shared" where all machines see the project's folder under the same path, else the name of the DVC remote
    through which artifacts move. retries: how often a node is tried again whose worker or machine was lost.
    """

    kind: str
    address: str | None
    local_nodes: int
    store: str
    retries: int


EXECUTORS: Mapping[str, type] = {"local": LocalConfig, "ray": RayConfig}
LOCAL = {"kind": "local", "jobs": None, "memory_mib": None, "retries": 1}


@dataclass
class TrackingConfig:
    """kind: "mlflow" or "none". uri: MLflow's; a sqlite:///FILE is relative to the project."""

    kind: str
    uri: str
    experiment: str


@dataclass(frozen=True)
class Config:
    """groups: every group's resolved values. devices: profiles by name. files: {group or device.NAME: YAML file}."""

    groups: Mapping[str, dict[str, Any]]
    devices: Mapping[str, dict[str, Any]]
    pipeline: PipelineSpec
    schemas: Mapping[str, type]
    executor: LocalConfig | RayConfig
    tracking: TrackingConfig
    files: Mapping[str, Path]
    overrides: tuple[str, ...]


def load_config(project: Project, overrides: list[str]) -> Config:
    """Compose conf/ with `overrides` (Hydra's grammar) and check every key. Raises ConfigError."""
    from pipelines.compose import compose

    values, choices = compose(project, overrides)
    files = {group: file for group, choice in choices.items() if (file := find_file(project, group, choice))}
    files["config"] = project.conf / "config.yaml"
    refuse_strangers(project, values)
    pipeline = read_pipeline(values.get("pipeline"), named(project, files, "pipeline"))
    schemas = import_schemas(pipeline.schemas, named(project, files, "pipeline"))
    devices = check_devices(project, values.get("device") or {}, schemas.get("device"), overrides)
    files |= {f"device.{name}": file for name in devices if (file := find_file(project, "device", name))}
    own_defaults = {"executor": LOCAL, "tracking": {"kind": "none", "uri": "", "experiment": ""}}
    own: dict[str, type] = {"executor": executor_schema(values.get("executor", LOCAL)), "tracking": TrackingConfig}
    groups: dict[str, dict[str, Any]] = {}
    for group, value in {**own_defaults, **values}.items():
        if group in ("pipeline", "device"):
            continue
        schema = own.get(group) or schemas.get(group)
        where = origin(project, files, group, overrides)
        if schema is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {group} must be a mapping, and is {value!r}")
        groups[group] = typed.check(where, group, value, schema) if schema else typed.check_untyped(where, group, value)
    for group, kinds in (("executor", EXECUTORS), ("tracking", TRACKERS)):
        kind = groups[group]["kind"]
        if kind not in kinds:
            where = origin(project, files, group, overrides)
            raise ConfigError(f"{where}: {group}.kind: there is no '{kind}'", hint=suggestion(kind, kinds, "kinds"))
    for key, least in (("jobs", 1), ("memory_mib", 1), ("local_nodes", 1), ("retries", 0)):
        number = groups["executor"].get(key)
        if number is not None and number < least:
            where = origin(project, files, "executor", overrides)
            raise ConfigError(f"{where}: executor.{key} is {number}", hint=f"it must be at least {least}")
    return Config(
        groups=groups,
        devices=devices,
        pipeline=pipeline,
        schemas=schemas,
        executor=typed.build(groups["executor"], own["executor"]),
        tracking=typed.build(groups["tracking"], TrackingConfig),
        files=files,
        overrides=tuple(overrides),
    )


def executor_schema(value: Any) -> type:
    """Return the dataclass of the executor's kind; of the local one where there is no such kind."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return EXECUTORS.get(kind if isinstance(kind, str) else "local", LocalConfig)


def check_devices(project: Project, value: Any, schema: type | None, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Return the chosen profiles by name. Raises ConfigError."""
    devices: dict[str, dict[str, Any]] = {}
    for name, profile in value.items():
        if not isinstance(profile, Mapping):
            raise ConfigError(
                f"conf/device: '{name}' is not a device's profile",
                hint="a file conf/device/NAME.yaml begins with the line '# @package device.NAME'",
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", str(name)):
            raise ConfigError(f"device '{name}': a name holds only letters, digits, - and _")
        if str(name).lower() in RESERVED:
            raise ConfigError(
                f"device '{name}': artifacts/{name} is kept for Tapeout itself", hint="give the device another name"
            )
        file = find_file(project, "device", name)
        where = origin(project, {f"device.{name}": file} if file else {}, f"device.{name}", overrides)
        group = f"device.{name}"
        checked = typed.check(where, group, profile, schema) if schema else typed.check_untyped(where, group, profile)
        if checked.get("name", name) != name:
            raise ConfigError(
                f"{where}: name is '{checked['name']}'", hint=f"it must be '{name}', as the file is called"
            )
        devices[str(name)] = checked
    return devices


def import_schemas(name: str | None, where: str) -> Mapping[str, type]:
    """Return the {group: dataclass} mapping that a pipeline names. Raises PlanError."""
    schemas = import_name(name, f"{where}: schemas") if name else {}
    if not isinstance(schemas, Mapping):
        raise PlanError(f"{where}: schemas: {name} is not a mapping of groups to dataclasses")
    return schemas


def import_name(name: str, where: str) -> Any:
    """Return what package.module.NAME is. Raises PlanError."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise PlanError(f"{where}: {name} cannot be imported: no module named {error.name}") from error
    except AttributeError as error:
        known = [each for each in dir(importlib.import_module(module)) if not each.startswith("_")]
        raise PlanError(
            f"{where}: module {module} has no {attribute}", hint=suggestion(attribute, known, f"{module} has")
        ) from error


def refuse_strangers(project: Project, values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a top-level key that neither a group nor config.yaml has."""
    import yaml

    known = {"executor", "tracking"} | {
        folder.name for base in (project.conf, *project.config_dirs) for folder in base.iterdir() if folder.is_dir()
    }
    known |= set(yaml.safe_load((project.conf / "config.yaml").read_text(encoding="utf-8")) or {}) - {"defaults"}
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key '{key}'", hint=suggestion(key, known, "there are"))


def find_file(project: Project, group: str, choice: str) -> Path | None:
    """Return the YAML file of a group's choice: the project's own first, as Hydra has it."""
    candidates = [base / group / f"{choice}.yaml" for base in (project.conf, *project.config_dirs)]
    return next((path for path in candidates if path.is_file()), None)


def named(project: Project, files: Mapping[str, Path], group: str) -> str:
    return project.relative(files[group]) if group in files else group


def origin(project: Project, files: Mapping[str, Path], group: str, overrides: list[str]) -> str:
    """Return where a group's values come from, for messages: its file, and the overrides that changed it."""
    own = [each for each in overrides if each.lstrip("+~").startswith(f"{group}.")]
    return " with ".join([named(project, files, group), *([" ".join(own)] if own else [])])
