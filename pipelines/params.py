"""params.yaml: the resolved configuration in the form that DVC's own Hydra integration writes.

`dvc exp run -S 'quantize=int8'` composes conf/ with that override into params.yaml and runs the stages whose parameters
it changed; there, and only there, `tapeout stage` takes its configuration from this file. A build writes the same
bytes, so that nothing looks modified after it. Executor and tracking are in it as conf/ has them: what the command line
says of them changes no result. DVC does not know --config-dir.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config import Config, check_values, make_config
from pipelines.digests import hash_json
from pipelines.errors import ConfigError, PlanError
from pipelines.ledger import Ledger, Record
from pipelines.plan import Node, Plan
from pipelines.project import Project

FILE = "params.yaml"
OWN_GROUPS = ("executor", "tracking")  # these change no result


def in_experiment() -> bool:
    """Say whether `dvc exp run` runs this process."""
    return "DVC_EXP_NAME" in os.environ


def in_repro() -> bool:
    """Say whether DVC runs this process as a stage, outside of an experiment."""
    return "DVC_STAGE" in os.environ and not in_experiment()


def load_params(project: Project) -> Config:
    """Return the configuration that params.yaml holds, checked as one composed from conf/. Raises ConfigError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(project.root / FILE), resolve=True)
    except FileNotFoundError as error:
        raise ConfigError(f"{FILE} is not there", hint="'tapeout build' writes it") from error
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{FILE} is damaged: {' '.join(str(error).split())}", hint=f"git checkout {FILE}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{FILE} holds no groups", hint=f"git checkout {FILE}")
    try:
        return make_config(project, check_values(project, values, {}, []), [])
    except ConfigError as error:
        raise type(error)(f"{FILE}: {error.message}", hint=error.hint) from error


def check_described(plan: Plan, name: str) -> None:
    """Raise PlanError where params.yaml makes a plan without the node `name` of dvc.yaml."""
    if name not in plan.nodes:
        raise PlanError(
            f"{FILE} makes another plan than dvc.yaml describes: there is no node '{name}' in it",
            hint="what adds or removes nodes (devices, the pipeline) is built with: tapeout build OVERRIDES",
        )


def share(project: Project, record: Record) -> None:
    """Let the project remember what an experiment in a copy of it has made: `dvc exp run --temp`, or from the queue.

    DVC gives the copy the project's own cache; only the memory of keys would be lost with the copy.
    """
    home = Path(os.environ.get("DVC_ROOT") or project.root)
    if in_experiment() and home != project.root and (home / "conf").is_dir():
        Ledger(Project(home).state / "ledger").add(record)


def shared(overrides: tuple[str, ...]) -> list[str]:
    """Return the overrides that can change a result."""
    return [each for each in overrides if each.lstrip("+~").partition("=")[0].partition(".")[0] not in OWN_GROUPS]


def mark_of(config: Config) -> str:
    """Return a digest that changes where the file has to be composed anew."""
    return hash_json([config.groups, config.devices, repr(config.pipeline), shared(config.overrides)])


def at_hand(config: Config) -> bool:
    """Say whether what the file should hold is known from when the configuration was loaded."""
    return config.composed is not None and shared(config.overrides) == list(config.overrides)


def compose_params(project: Project, config: Config) -> dict[str, Any]:
    """Return what the file should hold: composed anew, as conf/ is now, unless it is `at_hand`."""
    if config.composed is not None and at_hand(config):
        return dict(config.composed)
    from pipelines.compose import compose

    return compose(project, shared(config.overrides))[0]


def text_of(values: Mapping[str, Any]) -> str:
    """Return the file's text, as DVC would write it."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))


def keys_of(values: Mapping[str, Any], node: Node) -> list[str]:
    """Return what the node depends on in the file: its stage's declaration, its group, and what it reads of devices.

    DVC wants every key that is listed to be there. Where one that could be added is not, its parent is listed.
    """
    stage, found = node.stage, {f"pipeline.stages.{node.stage.name}"}
    if stage.config and stage.config in values and stage.config not in OWN_GROUPS:
        found |= (
            {stage.config} if stage.config_fields is None else {f"{stage.config}.{key}" for key in stage.config_fields}
        )
    for name in node.devices if stage.per else tuple(node.profiles or ()):
        profile = values["device"][name]
        fields: list[str] = []
        if stage.config and stage.per:
            overrides = profile.get("overrides")
            within = isinstance(overrides, Mapping) and stage.config in overrides
            fields.append(f"overrides.{stage.config}" if within else "overrides")
        if stage.device or stage.devices:
            fields += stage.device_fields if stage.device_fields is not None else [""]
        whole = any(field.partition(".")[0] not in profile for field in fields)
        found |= {f"device.{name}"} if whole else {f"device.{name}.{field}" for field in fields}
    return sorted(found)


def values_at(values: Mapping[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return {key: its value}; keys with dots go down."""
    found: dict[str, Any] = {}
    for key in keys:
        value: Any = values
        for name in key.split("."):
            value = value[name]
        found[key] = value
    return found
