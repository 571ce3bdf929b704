"""The configuration: composed by Hydra from conf/ and the command line, checked against its types."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import typed
from pipelines.choices import ALL, reserved, spelled_out
from pipelines.digests import hash_json
from pipelines.errors import ConfigError, PlanError, suggestion
from pipelines.project import Project
from pipelines.remembered import mark_of, recall, remember, shape
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
    """groups: every group's resolved values. devices: profiles by name. files: {group or device.NAME: YAML file}.

    departures: {device: {group: values}} where a device's overrides make a group's values other ones for it. composed:
    what Hydra made of conf/, before it was checked.
    """

    groups: Mapping[str, dict[str, Any]]
    devices: Mapping[str, dict[str, Any]]
    departures: Mapping[str, Mapping[str, dict[str, Any]]]
    pipeline: PipelineSpec
    schemas: Mapping[str, type]
    executor: LocalConfig | RayConfig
    tracking: TrackingConfig
    files: Mapping[str, Path]
    overrides: tuple[str, ...]
    composed: Mapping[str, Any]


def load_config(project: Project, overrides: list[str]) -> Config:
    """Compose conf/ with `overrides` (Hydra's grammar and device=all) and check every key. Raises ConfigError."""
    overrides = spelled_out(project, overrides)
    mark = mark_of(project, overrides)
    known = recall(project, mark)
    if known is not None and known["shapes"] == shapes_of(import_schemas(known["schemas"], "pipeline")):
        return make_config(project, known, overrides)
    from pipelines.compose import compose

    values, choices = compose(project, overrides)
    checked = check_values(project, values, choices, overrides)
    if mark_of(project, overrides) == mark:  # else conf/ was edited meanwhile, and nobody knows what was read
        remember(project, mark, checked)
    return make_config(project, checked, overrides)


def check_values(
    project: Project, values: Mapping[str, Any], choices: Mapping[str, str], overrides: list[str]
) -> dict[str, Any]:
    """Return a resolved configuration in its normal form, which JSON can hold. Raises ConfigError.

    values: all groups. choices: {group: the name of its file}, as far as it has one.
    """
    files = files_of(project, choices, values.get("device") or {})
    refuse_strangers(project, values)
    pipeline = read_pipeline(values.get("pipeline"), named(project, files, "pipeline"))
    schemas = import_schemas(pipeline.schemas, named(project, files, "pipeline"))
    devices = check_devices(project, values.get("device") or {}, schemas.get("device"), overrides)
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
    check_overrides(pipeline, groups, devices)
    departures = {name: departures_of(project, groups, schemas, name, profile) for name, profile in devices.items()}
    return {
        "choices": dict(choices),
        "composed": dict(values),
        "departures": departures,
        "devices": devices,
        "groups": groups,
        "pipeline": values["pipeline"],
        "schemas": pipeline.schemas,
        "shapes": shapes_of(schemas),
    }


def check_overrides(pipeline: PipelineSpec, groups: Mapping[str, Any], devices: Mapping[str, dict[str, Any]]) -> None:
    """Raise PlanError for a device's override that no stage would see: each stage per device sees its own group's."""
    seen = {stage.config for stage in pipeline.stages.values() if stage.per and stage.config}
    for device, profile in devices.items():
        overrides = profile.get("overrides") or {}
        if not isinstance(overrides, Mapping):
            raise PlanError(
                f"device {device}: overrides is {overrides!r}", hint="it maps groups to values: {GROUP: {KEY: VALUE}}"
            )
        for name, values in overrides.items():
            if name not in groups:
                hint = suggestion(name, groups, "groups")
                raise PlanError(f"device {device}: overrides: there is no group '{name}'", hint=hint)
            if seen and name not in seen:
                raise PlanError(
                    f"device {device}: overrides.{name}: no stage that is per device uses {name}",
                    hint=f"a device can override: {', '.join(sorted(map(str, seen)))}",
                )
            if not isinstance(values, Mapping):
                raise PlanError(
                    f"device {device}: overrides.{name} is {values!r}, and must be a mapping",
                    hint=f"name the keys: +device.{device}.overrides.{name}.KEY=VALUE",
                )


def departures_of(
    project: Project, groups: Mapping[str, dict[str, Any]], schemas: Mapping[str, type], device: str, profile: Any
) -> dict[str, dict[str, Any]]:
    """Return {group: its values with the device's own overrides in them}. Raises ConfigError."""
    file = find_file(project, "device", device)
    where = project.relative(file) if file else f"device {device}"
    found = {}
    for group, values in (profile.get("overrides") or {}).items():
        merged = {**groups[group], **values}
        schema = schemas.get(group)
        found[group] = typed.check(f"{where}: overrides", group, merged, schema) if schema else merged
    return found


def make_config(project: Project, checked: Mapping[str, Any], overrides: list[str]) -> Config:
    """Return the configuration that `check_values` has returned, with its types."""
    files = files_of(project, checked["choices"], checked["devices"])
    pipeline = read_pipeline(checked["pipeline"], named(project, files, "pipeline"))
    return Config(
        groups=checked["groups"],
        devices=checked["devices"],
        departures=checked["departures"],
        pipeline=pipeline,
        schemas=import_schemas(pipeline.schemas, named(project, files, "pipeline")),
        executor=typed.build(checked["groups"]["executor"], executor_schema(checked["groups"]["executor"])),
        tracking=typed.build(checked["groups"]["tracking"], TrackingConfig),
        files=files,
        overrides=tuple(overrides),
        composed=checked["composed"],
    )


def files_of(project: Project, choices: Mapping[str, str], devices: Iterable[str]) -> dict[str, Path]:
    """Return {group or device.NAME: YAML file}, for those that have one."""
    files = {group: file for group, choice in choices.items() if (file := find_file(project, group, choice))}
    files["config"] = project.conf / "config.yaml"
    return files | {f"device.{name}": file for name in devices if (file := find_file(project, "device", name))}


def shapes_of(schemas: Mapping[str, type]) -> str:
    """Return the digest of the types that groups are checked against."""
    return hash_json({group: shape(schema) for group, schema in schemas.items()})


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
        if str(name).lower() == ALL:
            raise reserved(f"device '{name}'")
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
    """Return what package.module.NAME is. Raises PlanError, whatever goes wrong in the module."""
    module, _, attribute = name.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PlanError(f"{where}: {name} cannot be imported: no module named {error.name}") from error
    except (Exception, SystemExit) as error:
        raise PlanError(f"{where}: {name} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(found, attribute):
        known = [each for each in dir(found) if not each.startswith("_")]
        raise PlanError(
            f"{where}: module {module} has no {attribute}", hint=suggestion(attribute, known, f"{module} has")
        )
    return getattr(found, attribute)


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
