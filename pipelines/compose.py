"""Hydra's part: conf/ and overrides in, plain values out, and its errors in our words."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError, safe_load

from pipelines.choices import check_devices_chosen, choices_of
from pipelines.errors import ConfigError, suggestion
from pipelines.project import Project

FEW = 5  # devices that a hint spells out


def compose(project: Project, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the resolved configuration and {group: choice}. Raises ConfigError."""
    for override in overrides:
        if override.lstrip("+~").startswith("hydra."):
            raise ConfigError(
                f"'{override}': Hydra's own settings are not Tapeout's", hint="use --config-dir to add groups"
            )
    search = ",".join(f"'file://{folder}'" for folder in project.config_dirs)
    extra = [f"hydra.searchpath=[{search}]"] if search else []
    logging.getLogger("hydra").setLevel(logging.ERROR)
    GlobalHydra.instance().clear()
    try:
        check_choices(project, overrides)
        with initialize_config_dir(str(project.conf), version_base=None):
            config = hydra_compose("config", overrides=overrides + extra, return_hydra_config=True)
        choices = {group: name for group, name in config.hydra.runtime.choices.items() if isinstance(name, str)}
        wanted = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        values: Any = OmegaConf.to_container(wanted, resolve=True)
    except MissingConfigException as error:
        raise missing_file(project, str(error.missing_cfg_file)) from error
    except OverrideParseException as error:
        raise ConfigError(f"'{error.override}' is not an override", hint=how_to_write(str(error.override))) from error
    except ConfigCompositionException as error:
        raise impossible_override(project, error, overrides) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"conf: {str(error).partition(chr(10))[0]}") from error
    except YAMLError as error:
        raise ConfigError(f"conf: not YAML: {' '.join(str(error).split())}") from error
    except (
        AssertionError,
        AttributeError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
    ) as error:  # Hydra's, of odd values
        raise ConfigError(
            f"the configuration cannot be composed: {str(error).partition(chr(10))[0]}",
            hint=f"overrides: {' '.join(overrides) or 'none'}",
        ) from error
    check_added(project, overrides, values.get("device"))
    return {str(key): value for key, value in dict(values).items()}, choices


def check_choices(project: Project, overrides: list[str]) -> None:
    """Raise ConfigError where a group is chosen by anything but one name or, for devices, a list of different names."""
    defaults = (safe_load((project.conf / "config.yaml").read_text(encoding="utf-8")) or {}).get("defaults") or []
    chosen = [
        (f"conf/config.yaml: {group}: {value}", str(group), value)
        for entry in defaults
        if isinstance(entry, dict)
        for group, value in entry.items()
    ]
    parsed = OverridesParser.create().parse_overrides(overrides) if overrides else []
    for each in parsed:
        if each.is_sweep_override():
            raise ConfigError(
                f"{each.input_line}: one value is needed", hint=f"to build each: tapeout build -m {each.input_line}"
            )
    chosen += [(f"{each.input_line}", each.key_or_group, each.value()) for each in parsed if not each.is_delete()]
    for what, group, value in chosen:
        if group == "device" and isinstance(value, str):
            value = [value]
        if (
            not group
            or isinstance(value, str)
            or not any((base / group).is_dir() for base in (project.conf, *project.config_dirs))
        ):
            continue
        names = choices_of(project, group)
        if group != "device":
            raise ConfigError(f"{what}: one name is needed", hint=f"conf/{group} has: {', '.join(names)}")
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ConfigError(f"{what}: device=[NAME,...] is needed", hint=f"conf/device has: {', '.join(names)}")
        check_devices_chosen(project, what, value)


def missing_file(project: Project, name: str) -> ConfigError:
    """Return the error for a group or a choice that conf/ does not have."""
    group, _, choice = name.removesuffix(".yaml").rpartition("/")
    folders = [base / group for base in (project.conf, *project.config_dirs)]
    if not group or not any(folder.is_dir() for folder in folders):
        return ConfigError(f"conf/{name}: no such file")
    known = choices_of(project, group)
    title = f"conf/{group} has"
    return ConfigError(
        f"{group}={choice}: there is no conf/{group}/{choice}.yaml", hint=suggestion(choice, known, title)
    )


def how_to_write(override: str) -> str:
    """Return the hint for what is not an override. A ~ is Hydra's own sign, and the shell leaves it alone there."""
    key, _, value = override.partition("=")
    if value.startswith("~"):
        home = f"for your home folder write {key}=$HOME{value[1:]}; " if value[1:2] in ("", "/") else ""
        return f"""{home}a value that itself begins with ~ is quoted twice: "{key}='{value}'\""""
    return "write group=name, group.key=value or +group.key=value"


def impossible_override(project: Project, error: ConfigCompositionException, overrides: list[str]) -> ConfigError:
    """Return the error for an override of a key or group that is not there."""
    cause = error.__cause__
    key, parent = getattr(cause, "full_key", None), getattr(cause, "parent_node", None)
    if not key:
        return ConfigError(f"an override cannot be applied: {str(error).partition(chr(10))[0]}", hint=str(cause or ""))
    path, last = str(key).rpartition(".")[0], str(key).rpartition(".")[2]
    known = keys_of(parent, project if not path else None)
    given = next((each for each in overrides if each.lstrip("+").startswith(str(key))), str(key))
    removed = next((each for each in overrides if each.partition("=")[0] == f"~{key}"), None)
    if removed and removed != given:
        return ConfigError(f"{given}: '{key}' is taken away by {removed}", hint="leave out one of the two")
    if path == "device" and last in choices_of(project, "device"):
        return not_chosen(given, last, known)
    where = f"{path} has no key '{last}'" if path else f"there is no group or key '{last}'"
    return ConfigError(f"{given}: {where}", hint=suggestion(last, known, f"{path} has" if path else "there are"))


def check_added(project: Project, overrides: list[str], devices: Any) -> None:
    """Raise ConfigError for +device.NAME.KEY=VALUE of a device that conf/ has, where nothing chose it."""
    added: dict[str, list[str]] = {}
    for override in overrides:
        key = override.partition("=")[0].split(".")
        if len(key) > 2 and key[0].startswith("+") and key[0].lstrip("+") == "device":
            added.setdefault(key[1], []).append(override)
    for name, given in added.items() if isinstance(devices, dict) else ():
        keys = {each.partition("=")[0].split(".")[2] for each in given}
        if name in choices_of(project, "device") and set(devices.get(name) or ()) <= keys:
            raise not_chosen(given[0], name, [each for each in devices if each not in added])


def not_chosen(given: str, name: str, chosen: list[str]) -> ConfigError:
    """Return the error for an override of a device that conf/ has and the configuration has not chosen."""
    return ConfigError(
        f"{given}: {name} is in conf/device, and is not among the chosen devices: {', '.join(chosen)}",
        hint=f"choose it as well: device=[{','.join([*(chosen if len(chosen) <= FEW else ['...']), name])}]",
    )


def keys_of(node: Any, project: Project | None) -> list[str]:
    """Return the keys of a configuration node and, at the top, the names of the groups."""
    keys: Iterable[str] = [str(key) for key in node if key != "hydra"] if isinstance(node, DictConfig) else []
    folders: list[Path] = [project.conf, *project.config_dirs] if project else []
    return sorted({*keys, *(each.name for folder in folders for each in folder.iterdir() if each.is_dir())})
