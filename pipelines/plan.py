"""The plan: a pipeline expanded over the devices, with equal nodes as one node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines import typed
from pipelines.config import Config, import_name
from pipelines.digests import hash_json
from pipelines.errors import ConfigError, PlanError, TapeoutError, suggestion
from pipelines.project import Project
from pipelines.spec import NAME, StageSpec

FEW = 6  # nodes that an error names


@dataclass(frozen=True)
class Node:
    """A stage with its own configuration and inputs.

    devices: those that share it (all of them, for a stage that is not per device). device: the slice of the profile
    that the stage may read, or None. profiles: {device: such a slice} of a stage that is given all devices, or None.
    inputs: {parameter: node name}. code: modules that the configuration makes it run. folder, record: relative to the
    project.
    """

    name: str
    stage: StageSpec
    devices: tuple[str, ...]
    config: Mapping[str, Any] | None
    device: Mapping[str, Any] | None
    inputs: Mapping[str, str]
    folder: str
    code: tuple[str, ...] = ()
    profiles: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def record(self) -> str:
        return f"artifacts/build/{self.name}.json"


@dataclass(frozen=True)
class Plan:
    """nodes: in an order in which they could run. devices: as chosen."""

    nodes: Mapping[str, Node]
    devices: tuple[str, ...]

    def needed_by(self, name: str) -> list[Node]:
        """Return the nodes that need the node `name` directly."""
        return self._needed_by.get(name, [])

    @cached_property
    def _needed_by(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            for need in dict.fromkeys(node.inputs.values()):
                found.setdefault(need, []).append(node)
        return found

    def node(self, name: str) -> Node:
        """Return the node called `name`. Raises PlanError."""
        if name in self.nodes:
            return self.nodes[name]
        if found := self.of_stage(name):
            more = f" and {len(found) - FEW} more: 'tapeout plan' lists them" if len(found) > FEW else ""
            raise PlanError(
                f"no node is called '{name}': that stage has one for each device here, or for those that share it",
                hint=f"name one of them: {', '.join(found[:FEW])}{more}",
            )
        raise PlanError(f"no node is called '{name}'", hint=suggestion(name, self.nodes, "nodes"))

    def of_stage(self, stage: str) -> list[str]:
        """Return the names of a stage's nodes."""
        return [name for name, node in self.nodes.items() if node.stage.name == stage]


def make_plan(project: Project, config: Config) -> Plan:
    """Expand the pipeline of `config` over its devices. Raises ConfigError and PlanError."""
    devices = tuple(config.devices)
    if not devices and any(stage.per for stage in config.pipeline.stages.values()):
        raise PlanError("no device is chosen", hint="choose some: device=[NAME,...]; conf/device holds their profiles")
    nodes: dict[str, Node] = {}
    made: dict[tuple[str, str | None], str] = {}  # (stage, device) -> node
    for stage in config.pipeline.stages.values():
        check_stage(project, config, stage)
        every: tuple[str | None, ...] = devices if stage.per else (None,)
        runs = [device for device in every if not is_skipped(config, stage, device)]
        needs = {device: needs_of(config, stage, device, made) for device in runs}
        for device in every:
            if device not in needs:
                made[stage.name, device] = maker(made, stage.needs[stage.skip["pass"]], device)
        for group in sharing(config, stage, devices, needs):
            first = group[0] if stage.per else None
            shared = not stage.bundle and set(group) == set(devices)
            name = stage.name if shared or not stage.per else f"{stage.name}-{group[0]}"
            folder = f"artifacts/{group[0]}" if stage.bundle else f"artifacts/build/{name}"
            node = Node(
                name,
                stage,
                group,
                settings_of(config, stage, first),
                slice_of(config, stage, first),
                needs[first],
                folder,
                code_of(config, stage),
                profiles_of(config, stage),
            )
            if name in nodes:
                raise PlanError(f"two nodes are called {name}: a stage and a device have confusing names")
            nodes[name] = node
            made.update({(stage.name, device if stage.per else None): name for device in (group or (None,))})
    kept = wanted(config, nodes)
    for node in kept.values():
        check_node(config, node)
    return Plan(kept, devices)


def wanted(config: Config, nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Return the nodes without those that other stages would need, had `when` and `skip` left any that does."""
    wanted_by_some = {need for stage in config.pipeline.stages.values() for need in stage.needs.values()}
    kept: dict[str, Node] = {}
    needed: set[str] = set()
    for name, node in reversed(list(nodes.items())):
        if name in needed or node.stage.name not in wanted_by_some:
            kept[name] = node
            needed |= set(node.inputs.values())
    return dict(reversed(list(kept.items())))


def needs_of(
    config: Config, stage: StageSpec, device: str | None, made: Mapping[tuple[str, str | None], str]
) -> dict[str, str]:
    """Return {parameter: node} of what the stage needs for a device."""
    return {
        parameter: maker(made, need, device)
        for parameter, need in stage.needs.items()
        if parameter not in stage.when or holds(config, stage, parameter, device)
    }


def maker(made: Mapping[tuple[str, str | None], str], stage: str, device: str | None) -> str:
    """Return the node that makes for `device` what `stage` makes."""
    return made.get((stage, device)) or made[stage, None]


def is_skipped(config: Config, stage: StageSpec, device: str | None) -> bool:
    """Say whether the stage is left out for a device, so that one of its needs stands for it."""
    if not stage.skip:
        return False
    return not said(config, stage, stage.skip["unless"], f"stage {stage.name}: skip.unless", device)


def holds(config: Config, stage: StageSpec, parameter: str, device: str | None) -> bool:
    """Say whether the stage's configuration, or the device, makes it need the artifact `parameter`."""
    return said(config, stage, stage.when[parameter], f"stage {stage.name}: when.{parameter}", device)


def said(config: Config, stage: StageSpec, name: str, where: str, device: str | None) -> bool:
    """Return the answer of the function `name`, of the pipeline's own, for a device. Raises PlanError."""
    answer = asked(config, stage, name, where, config_of(config, stage, device), device)
    if not isinstance(answer, bool):
        raise PlanError(f"{where}: {name} returned {answer!r}, and must return True or False")
    return answer


def sharing(
    config: Config, stage: StageSpec, devices: tuple[str, ...], needs: Mapping[str | None, Mapping[str, str]]
) -> list[tuple[str, ...]]:
    """Return the devices in groups of which each shares one node of `stage`."""
    if not stage.per:
        return [devices] if needs else []
    groups: dict[str, list[str]] = {}
    for device in (device for device in devices if device in needs):
        mark = [
            device if stage.bundle else None,
            dict(needs[device]),
            slice_of(config, stage, device),
            settings_of(config, stage, device),
        ]
        groups.setdefault(hash_json(mark), []).append(device)
    return [tuple(group) for group in groups.values()]


def code_of(config: Config, stage: StageSpec) -> tuple[str, ...]:
    """Return the modules that the configuration makes the stage run. Raises PlanError for a key that names no code."""
    modules = []
    for place in stage.code:
        group, _, key = place.partition(".")
        if key not in config.groups.get(group, {}):
            hint = suggestion(
                place, [f"{name}.{each}" for name in config.groups for each in config.groups[name]], "keys"
            )
            raise PlanError(f"stage {stage.name}: code: there is no key '{place}'", hint=hint)
        value = config.groups[group][key]
        target = value.get("_target_") if isinstance(value, Mapping) else value
        if value is not None and not (isinstance(target, str) and NAME.fullmatch(target)):
            raise ConfigError(f"{place} is {target!r}, which names no code", hint="expected package.module.NAME")
        modules += [str(target).rpartition(".")[0]] if target else []
    return tuple(modules)


def config_of(config: Config, stage: StageSpec, device: str | None) -> dict[str, Any] | None:
    """Return the stage's group of the configuration, with the device's own overrides in it."""
    if stage.config is None:
        return None
    return config.departures.get(device or "", {}).get(stage.config) or config.groups[stage.config]


def settings_of(config: Config, stage: StageSpec, device: str | None) -> dict[str, Any] | None:
    """Return what the stage may read of its configuration for a device."""
    values = config_of(config, stage, device)
    return (
        values if values is None or stage.config_fields is None else {key: values[key] for key in stage.config_fields}
    )


def slice_of(config: Config, stage: StageSpec, device: str | None) -> dict[str, Any] | None:
    """Return what the stage may read of the device's profile."""
    return limited(config, stage, device) if stage.device and device is not None else None


def profiles_of(config: Config, stage: StageSpec) -> dict[str, dict[str, Any]] | None:
    """Return what a stage that is given all devices may read of each, by name and in the order of names."""
    return {device: limited(config, stage, device) for device in sorted(config.devices)} if stage.devices else None


def limited(config: Config, stage: StageSpec, device: str) -> dict[str, Any]:
    """Return the device's profile with the fields that the stage has declared."""
    profile = {key: value for key, value in config.devices[device].items() if key != "overrides"}
    return profile if stage.device_fields is None else {key: profile[key] for key in stage.device_fields}


def check_stage(project: Project, config: Config, stage: StageSpec) -> None:
    """Raise PlanError where the stage names a group, a field or a key that does not exist."""
    where = project.relative(config.files["pipeline"]) if "pipeline" in config.files else "pipeline"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", stage.name):
        raise PlanError(f"{where}: '{stage.name}' is no name for a stage: letters, digits and _ only")
    if stage.config is not None and stage.config not in config.groups:
        hint = suggestion(stage.config, config.groups, "groups")
        raise PlanError(f"{where}: stage {stage.name}: there is no group '{stage.config}'", hint=hint)
    for field in stage.config_fields or ():
        known = config.groups[stage.config] if stage.config else {}
        if field not in known:
            raise PlanError(
                f"{where}: stage {stage.name}: config_fields: its group has no '{field}'",
                hint=suggestion(field, known, f"{stage.config} has"),
            )
    for key in stage.sources:
        if key not in (
            config.groups.get(stage.config or "", {}) if stage.config_fields is None else stage.config_fields
        ):
            raise PlanError(f"{where}: stage {stage.name}: sources: '{key}' is no key of its configuration group")
    for device, profile in config.devices.items():
        for field in stage.device_fields or ():
            if field not in profile:
                raise PlanError(
                    f"{where}: stage {stage.name}: device_fields: {device} has no '{field}'",
                    hint=suggestion(field, profile, "it has"),
                )


def check_node(config: Config, node: Node) -> None:
    """Call the stage's own check: for each device that shares the node, or once with no device."""
    if node.stage.check is None:
        return
    for device in node.devices if node.stage.per else (None,):
        asked(
            config,
            node.stage,
            node.stage.check,
            f"stage {node.stage.name}: check",
            config_of(config, node.stage, device),
            device,
        )


def asked(
    config: Config, stage: StageSpec, name: str, where: str, values: Mapping[str, Any] | None, device: str | None
) -> Any:
    """Return what the function `name` says of the stage's configuration and a device, both with their types."""
    function = import_name(name, where)
    schema, device_schema = config.schemas.get(stage.config or ""), config.schemas.get("device")
    settings = typed.build(values, schema) if schema and values is not None else values
    profile = config.devices[device] if device is not None else None
    try:
        return function(settings, typed.build(profile, device_schema) if device_schema and profile else profile)
    except TapeoutError:
        raise
    except Exception as error:
        raise PlanError(f"{where}: {name} failed: {type(error).__name__}: {error}") from error


def source_path(project: Project, node: Node, key: str) -> Path:
    """Return where an external input lies. It need not exist."""
    return project.root / str((node.config or {})[key])


def is_elsewhere(value: Any) -> bool:
    """Say whether an external input has no files here: it is null, or a URI, which the stage fetches. Such a one is
    known by its name, not by its contents."""
    return value is None or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(value)) is not None
