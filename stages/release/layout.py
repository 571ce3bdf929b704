"""Where releases lie in a project, and a bundle's signatures beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ConfigError
from pipelines.project import Project

ARCHIVE = ".tar"
CHANNEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")  # also in a path of the repository, and in an alias of MLflow's


@dataclass(frozen=True)
class Sidecars:
    """The files beside a bundle that say where it comes from.

    provenance: a DSSE envelope with an in-toto statement (SLSA v1). signature: an OpenSSF model signature.
    """

    provenance: Path
    signature: Path


def sidecars(bundle: Path) -> Sidecars:
    """Return the sidecars of a bundle's folder or archive; they need not exist."""
    stem = bundle.name.removesuffix(ARCHIVE) if not bundle.is_dir() else bundle.resolve().name
    folder = bundle.parent if not bundle.is_dir() else bundle.resolve().parent
    return Sidecars(folder / f"{stem}.provenance.json", folder / f"{stem}.model.sig")


def check_channel_name(name: str) -> str:
    """Return the name of a channel. Raises ConfigError where it could not be one."""
    if not CHANNEL.fullmatch(name):
        raise ConfigError(
            f"channel '{name}': a name holds at most 63 lower-case letters, digits, - and _, and begins with "
            "one of the first two",
            hint="such as stable",
        )
    return name


@dataclass(frozen=True)
class Releases:
    """releases/ of a project: VERSION/ holds archives and sidecars (left out of git); the history and the keys that are
    trusted belong into git."""

    project: Project

    @property
    def folder(self) -> Path:
        return self.project.root / "releases"

    @property
    def history(self) -> Path:
        return self.folder / "history.jsonl"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def archive(self, version: str, device: str) -> Path:
        return self.folder / version / f"{device}{ARCHIVE}"
