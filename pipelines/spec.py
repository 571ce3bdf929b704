"""A pipeline as its YAML declares it: stages, what each needs, and what the framework must know of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from heapq import heapify, heappop, heappush
from pathlib import PurePath
from typing import Any

from pipelines.errors import PlanError, suggestion

GIVEN = ("config", "device", "devices", "item", "work")  # parameters that no artifact can have
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")  # package.module.NAME
KINDS: Mapping[str, tuple[type, str]] = {
    "config": (str, "the name of a group"),
    "config_fields": (list, "a list of names"),
    "needs": (Mapping, "a mapping of parameters to stages"),
    "when": (Mapping, "a mapping of parameters to package.module.function"),
    "code": (list, "a list of GROUP.KEY"),
    "skip": (Mapping, "a mapping with unless, package.module.function, and pass, a need"),
    "calls": (list, "a list of package.module.function"),
    "device": (bool, "true or false"),
    "devices": (bool, "true or false"),
    "device_fields": (list, "a list of names"),
    "sources": (Mapping, "a mapping of keys to 'file', 'folder' or a list of patterns"),
    "reads": (list, "a list of patterns, relative to the project"),
    "libraries": (list, "a list of names"),
    "check": (str, "package.module.function"),
    "gates": (str, "the name of a file"),
    "answers": (str, "the name of a file"),
    "summary": (str, "the name of a file"),
    "figures": (list, "a list of names of files"),
    "bundle": (bool, "true or false"),
    "resources": (Mapping, "a mapping with some of cpus, memory_mib and memory_per_input"),
}


@dataclass(frozen=True)
class Resources:
    """What a stage takes while it runs; it changes no result.

    cpus: cores. memory_mib: its peak beside what grows with its inputs, which is memory_per_input bytes a byte of them.
    """

    cpus: int = 1
    memory_mib: int = 0
    memory_per_input: float = 0.0


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    run            the stage function, as package.module.function
    schemas        the pipeline's, of which `config` and `device` are made
    config         the configuration group that it is given as `config`, or None
    config_fields  the keys of that group that it may read; None: all. A change of the others is no change for it
    needs          {parameter: stage}: the artifacts that it is given
    when           {parameter: a light function(config, device)}: a need that is dropped where it says False. A stage
                   that others need in the pipeline, and nobody in the plan, is left out of it
    skip           {unless: a light function(config, device), pass: a need}: where it says False, the stage is not in
                   the plan, and what needs it gets what it would have been given for that need
    calls          functions, as package.module.function, that the stage may run by work.map
    code           GROUP.KEYs of the configuration that name code which the stage runs: package.module.NAME, or a
                   mapping with that as _target_; null is none
    per            "device": one node for each device, equal nodes being one
    device         whether it is given the device's profile as `device`
    devices        whether it, one for all devices, is given the profiles of all by name as `devices`
    device_fields  the fields of a profile that it may read; None: all. Devices equal in these share a node
    sources        {config key: "file" | "folder" | [patterns in a folder]}: inputs from outside. What lies behind a
                   URI, or is tracked by DVC and not here, the stage itself fetches; null is none
    reads          patterns of project files, beside modules, that the stage's code reads
    libraries      distributions whose versions can change the result ("python" is the interpreter)
    check          a light function(config, device), called at plan time, that raises ConfigError
    gates          the file of its artifact that holds gates; one that failed keeps what needs this stage from running
    answers        the file of its artifact that holds, one JSON object a line, each question, its answer and its score,
                   by which builds are compared: see pipelines/answers.py
    summary        the file of its artifact that says in words what came out, shown at the end of a build
    figures        files of its artifact that MLflow keeps and, where they are SVGs, the report shows
    bundle         whether it makes a device's bundle, which lies at artifacts/<device>/
    resources      what it takes while it runs
    """

    name: str
    run: str
    schemas: str | None = None
    config: str | None = None
    config_fields: tuple[str, ...] | None = None
    needs: Mapping[str, str] = field(default_factory=dict)
    when: Mapping[str, str] = field(default_factory=dict)
    skip: Mapping[str, str] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    per: str | None = None
    device: bool = False
    devices: bool = False
    device_fields: tuple[str, ...] | None = None
    sources: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    check: str | None = None
    gates: str | None = None
    answers: str | None = None
    summary: str | None = None
    figures: tuple[str, ...] = ()
    bundle: bool = False
    resources: Resources = Resources()

    @property
    def module(self) -> str:
        return self.run.rpartition(".")[0]

    @property
    def declared_files(self) -> list[str]:
        """The files that its artifact must have, relative to it."""
        return [name for name in (self.gates, self.summary, *self.figures) if name is not None]


@dataclass(frozen=True)
class PipelineSpec:
    """schemas: package.module.NAME of a {group: dataclass} mapping, or None. stages: in order of their needs.

    report: package.module.function(Reported) -> str, which makes the page of `tapeout report`, or None.
    """

    schemas: str | None
    stages: Mapping[str, StageSpec]
    report: str | None = None


def read_pipeline(value: Any, where: str) -> PipelineSpec:
    """Return the pipeline that a resolved `pipeline` group declares; `where` is its file. Raises PlanError."""
    if not isinstance(value, Mapping) or not isinstance(value.get("stages"), Mapping) or not value["stages"]:
        raise PlanError(f"{where}: a pipeline needs `stages`, a mapping of names to stages")
    refuse_unknown(value, {"schemas", "stages", "report"}, f"{where}: pipeline")
    if not isinstance(value.get("schemas"), str | None):
        raise PlanError(f"{where}: schemas is {value['schemas']!r}, and must be package.module.NAME")
    report = value.get("report")
    if report is not None and not (isinstance(report, str) and NAME.fullmatch(report)):
        raise PlanError(f"{where}: report is {report!r}, and must be package.module.function")
    stages = {name: read_stage(name, each, where, value.get("schemas")) for name, each in value["stages"].items()}
    bundles = [name for name, stage in stages.items() if stage.bundle]
    if len(bundles) > 1:
        raise PlanError(
            f"{where}: stages {' and '.join(bundles)} both make bundles, and would share artifacts/DEVICE",
            hint="give `bundle: true` to the last of them alone",
        )
    for stage in stages.values():
        for parameter in stage.when:
            if parameter not in stage.needs:
                raise PlanError(
                    f"{where}: stage {stage.name}: when: it has no need '{parameter}'",
                    hint=suggestion(parameter, stage.needs, "it needs"),
                )
        check_skip(stage, f"{where}: stage {stage.name}: skip")
        for parameter, need in stage.needs.items():
            if parameter in GIVEN:
                raise PlanError(
                    f"{where}: stage {stage.name}: needs: '{parameter}' is what a stage is given beside its inputs",
                    hint=f"call the parameter for {need} otherwise",
                )
            if need not in stages:
                raise PlanError(
                    f"{where}: stage {stage.name} needs '{need}' for '{parameter}', and there is no such stage",
                    hint=suggestion(need, stages, "stages"),
                )
            if stages[need].per and not stage.per:
                raise PlanError(
                    f"{where}: stage {stage.name} is one for all devices, but needs {need}, which is one per device",
                    hint=f"give {stage.name} `per: device`",
                )
    return PipelineSpec(value.get("schemas"), in_order(stages, where), report)


def read_stage(name: str, value: Any, where: str, schemas: str | None = None) -> StageSpec:
    """Return one stage of the pipeline. Raises PlanError for keys and values that a stage does not have."""
    where = f"{where}: stage {name}"
    if not isinstance(value, Mapping) or not isinstance(value.get("run"), str) or "." not in value["run"]:
        raise PlanError(f"{where} needs `run: package.module.function`")
    refuse_unknown(value, {each.name for each in fields(StageSpec)} - {"name", "schemas"}, where)
    for key, each in value.items():
        kind, words = KINDS.get(key, (object, ""))
        if each is not None and not (isinstance(each, kind) and holds_names(key, each)):
            raise PlanError(f"{where}: {key} is {each!r}, and must be {words}")
    if value.get("per") not in (None, "device"):
        raise PlanError(f"{where}: per is '{value['per']}', and can only be 'device'")
    if value.get("device") and not value.get("per"):
        raise PlanError(f"{where} asks for the device's profile", hint="give it `per: device`")
    if value.get("devices") and value.get("per"):
        raise PlanError(
            f"{where} is one per device, and asks for the profiles of all devices",
            hint="leave out `per`, or ask for its own device's profile: `device: true`",
        )
    for each in value.get("calls") or ():
        if not NAME.fullmatch(each):
            raise PlanError(f"{where}: calls: {each!r} is no package.module.function")
    if value.get("bundle") and not value.get("per"):
        raise PlanError(f"{where} makes bundles, one for each device", hint="give it `per: device`")
    frozen = {key: freeze(each) for key, each in value.items() if each is not None}
    resources = read_resources(frozen.pop("resources", {}), where)
    stage = StageSpec(name=name, schemas=schemas, resources=resources, **frozen)
    for file in stage.declared_files:
        if PurePath(file).is_absolute() or ".." in PurePath(file).parts:
            raise PlanError(f"{where}: '{file}' is no file of its artifact", hint="name it relative to work.out")
    return stage


def check_skip(stage: StageSpec, where: str) -> None:
    """Raise PlanError where `skip` does not say when, and what stands for the stage then."""
    if not stage.skip:
        return
    refuse_unknown(stage.skip, {"unless", "pass"}, where)
    if set(stage.skip) != {"unless", "pass"}:
        raise PlanError(f"{where} needs both `unless: package.module.function` and `pass: PARAMETER`")
    passed = stage.skip["pass"]
    if passed not in stage.needs:
        hint = suggestion(passed, stage.needs, "it needs")
        raise PlanError(f"{where}: pass: it has no need '{passed}'", hint=hint)
    if passed in stage.when:
        raise PlanError(
            f"{where}: pass: the need '{passed}' can be dropped by `when`, and nothing would stand for the stage then",
            hint=f"leave out when.{passed}, or pass another need",
        )


def read_resources(value: Mapping[str, Any], where: str) -> Resources:
    """Return what a stage says that it takes. Raises PlanError."""
    refuse_unknown(value, {each.name for each in fields(Resources)}, f"{where}: resources")
    for key, least in (("cpus", 1), ("memory_mib", 0), ("memory_per_input", 0)):
        each = value.get(key, least)
        whole = isinstance(each, int) or (key == "memory_per_input" and isinstance(each, float))
        if isinstance(each, bool) or not whole or each < least:
            raise PlanError(f"{where}: resources.{key} is {each!r}, and must be a number from {least}")
    return Resources(**value)


def holds_names(key: str, value: Any) -> bool:
    """Say whether a list or mapping of a stage holds what it should: names and, under `reads`, relative patterns."""
    if isinstance(value, list):
        return all(isinstance(each, str) and each and not (key == "reads" and each.startswith("/")) for each in value)
    if isinstance(value, Mapping) and key != "resources":
        return all(
            (isinstance(each, str) and (key != "sources" or each in ("file", "folder")))
            or (key == "sources" and isinstance(each, list) and holds_names("", each))
            for each in value.values()
        )
    return True


def refuse_unknown(value: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raise PlanError for a key that is not among `known`."""
    for key in value:
        if key not in known:
            raise PlanError(f"{where}: unknown key '{key}'", hint=suggestion(key, known, "known keys"))


def in_order(stages: Mapping[str, StageSpec], where: str) -> dict[str, StageSpec]:
    """Return the stages such that each comes after what it needs, else in the order of the file."""
    place = {name: index for index, name in enumerate(stages)}
    unmet = {name: set(stage.needs.values()) for name, stage in stages.items()}
    needed_by: dict[str, list[str]] = {name: [] for name in stages}
    for name, needs in unmet.items():
        for need in needs:
            needed_by[need].append(name)
    ready = [(place[name], name) for name, needs in unmet.items() if not needs]
    heapify(ready)
    ordered: dict[str, StageSpec] = {}
    while ready:
        _, name = heappop(ready)
        ordered[name] = stages[name]
        for after in needed_by[name]:
            unmet[after].discard(name)
            if not unmet[after]:
                heappush(ready, (place[after], after))
    if len(ordered) < len(stages):
        circle = ", ".join(name for name in stages if name not in ordered)
        raise PlanError(f"{where}: these stages need each other in a circle: {circle}")
    return ordered


def freeze(value: Any) -> Any:
    """Return lists as tuples, so that a spec cannot change."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping):
        return {key: freeze(each) for key, each in value.items()}
    return value
