"""Where a project is, and where things lie in it."""

from __future__ import annotations

import configparser
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipelines.errors import ConfigError


def find_project(start: Path, config_dirs: tuple[Path, ...] = ()) -> Project:
    """Return the project that holds `start`: its nearest parent with conf/ and pyproject.toml.

    config_dirs: the user's own configuration, searched after the project's conf/. Raises ConfigError.
    """
    for folder in (start, *start.parents):
        if (folder / "conf").is_dir() and (folder / "pyproject.toml").is_file():
            break
    else:
        raise ConfigError(
            f"no project here: neither {start} nor a parent of it holds conf/ and pyproject.toml",
            hint="go to the project's folder, or name it before the command: tapeout --project DIR COMMAND",
        )
    for config_dir in config_dirs:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: no such folder", hint="it should hold groups, as conf/ does")
    return Project(folder, config_dirs)


@dataclass(frozen=True)
class Project:
    """A project's folders. `root` and `config_dirs` are absolute."""

    root: Path
    config_dirs: tuple[Path, ...] = ()

    @property
    def conf(self) -> Path:
        return self.root / "conf"

    @property
    def state(self) -> Path:
        """What this checkout knows beside its artifacts; it can be deleted at the cost of time only."""
        return self.root / ".tapeout"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def import_roots(self) -> list[Path]:
        """Folders in which stage functions are looked for, beside what Python has installed."""
        roots = [self.root]
        for config_dir in self.config_dirs:
            roots += [config_dir, config_dir.parent]
        return list(dict.fromkeys(roots))

    @cached_property
    def cache(self) -> Path:
        """The folder of DVC's cache: `cache.dir` of the first of DVC's settings that has it, by default .dvc/cache.

        A project without DVC keeps the same objects in .tapeout/cache (`dvc init` wants to make .dvc/ itself). Raises
        ConfigError for a file of DVC's that cannot be read.
        """
        control = self.root / ".dvc"
        if not (control / "config").is_file():
            return self.state / "cache"
        for file in (control / "config.local", control / "config", *settings_of_dvc()):
            parser = configparser.ConfigParser(interpolation=None, strict=False)
            try:
                parser.read(file, encoding="utf-8")
            except (OSError, configparser.Error, ValueError) as error:
                raise ConfigError(
                    f"{self.relative(file)} is damaged: {' '.join(str(error).split())}",
                    hint="mend it; 'dvc config' writes it",
                ) from error
            if parser.has_option("cache", "dir"):
                return (file.parent / Path(parser.get("cache", "dir").strip("'\"")).expanduser()).resolve()
        return control / "cache"

    def relative(self, path: Path) -> str:
        """Return `path` as the project's files name it: relative, where it lies in the project."""
        text, within = str(path), f"{self.root}{os.sep}"
        return text.removeprefix(within) if path != self.root else "."


def settings_of_dvc() -> list[Path]:
    """Return DVC's settings of this user and of this machine, which hold for every project: where dvc.dirs has them."""
    home = "~/Library/Application Support" if sys.platform == "darwin" else "~/.config"
    system = "/Library/Application Support" if sys.platform == "darwin" else "/etc/xdg"
    named = [folder for folder in os.environ.get("XDG_CONFIG_DIRS", "").split(os.pathsep) if os.path.isabs(folder)]
    own = os.environ.get("XDG_CONFIG_HOME", "")
    folders = (
        os.environ.get("DVC_GLOBAL_CONFIG_DIR") or os.path.join(own if os.path.isabs(own) else home, "dvc"),
        os.environ.get("DVC_SYSTEM_CONFIG_DIR") or os.path.join(named[0] if named else system, "dvc"),
    )
    return [Path(folder).expanduser().absolute() / "config" for folder in folders]
