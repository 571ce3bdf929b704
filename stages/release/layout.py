"""Where releases lie in a project, and a bundle's signatures beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.project import Project

ARCHIVE = ".tar"


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
