"""What can be chosen of a group, and `device=all`: every device that conf/ and the user's own folders know."""

from __future__ import annotations

from pipelines.errors import ConfigError
from pipelines.project import Project

ALL = "all"


def choices_of(project: Project, group: str) -> list[str]:
    """Return the names that conf/GROUP and the user's own folders have. What lies in folders within is only inherited
    from: conf/device/base holds chips and runtimes, and no devices."""
    folders = [base / group for base in (project.conf, *project.config_dirs)]
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})


def spelled_out(project: Project, overrides: list[str]) -> list[str]:
    """Return the overrides with `device=all` as what it stands for now, so that a build of it stays the same build
    when a device is added. Raises ConfigError."""
    return [f"device=[{','.join(every_device(project))}]" if each == f"device={ALL}" else each for each in overrides]


def every_device(project: Project) -> list[str]:
    """Return the names of all devices. Raises ConfigError where there is none."""
    names = choices_of(project, "device")
    if not names:
        raise ConfigError(f"device={ALL}: conf/device holds no profile", hint="add conf/device/NAME.yaml")
    if ALL in names:
        raise reserved(f"conf/device/{ALL}.yaml")
    return names


def reserved(where: str) -> ConfigError:
    """Return the error for a device that is called as all of them are."""
    return ConfigError(
        f"{where}: no device can be called '{ALL}': device={ALL} means every one", hint="give the device another name"
    )


def check_devices_chosen(project: Project, what: str, names: list[str]) -> None:
    """Raise ConfigError where a list of devices, given by the override or the line `what`, holds anything else."""
    known = choices_of(project, "device")
    for name in names:
        if name == ALL:
            raise ConfigError(
                f"{what}: '{ALL}' is no device's name", hint=f"device={ALL} on the command line chooses every one"
            )
        if "/" in name:
            raise ConfigError(
                f"{what}: {name} is what profiles inherit from, and no device",
                hint=f"conf/device has: {', '.join(known)}",
            )
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ConfigError(f"{what}: {double[0]} is named twice", hint="name each device once")
