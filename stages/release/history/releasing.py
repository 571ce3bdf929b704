"""A build's bundles become releases: archives with signatures and provenance, and an entry of the history.

Killed at any moment, the next `create` completes it: files are written whole and equal, and the entry comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, ReleaseError, VerificationError, suggestion
from pipelines.project import Project
from pipelines.sealed import read_sealed
from stages.release.bundles.archive import pack
from stages.release.history.accepting import check_gates, check_traced
from stages.release.history.decision import Decision, once
from stages.release.history.state import State
from stages.release.layout import ARCHIVE, Releases, sidecars
from stages.release.manifest import NAME, Manifest, read
from stages.release.signing.keys import SigningKey
from stages.release.signing.signing import sign_bundle
from stages.release.signing.statement import source_of

Statements = Callable[[Project, str], dict[str, Any] | None]


@dataclass(frozen=True)
class Candidate:
    """A bundle that is to be released. statement: its provenance. dirty: its sources were not all committed."""

    folder: Path
    manifest: Manifest
    statement: dict[str, Any]
    dirty: bool

    @property
    def device(self) -> str:
        return self.manifest.device


def candidates(
    project: Project, devices: Sequence[str], version: str | None, allow_dirty: bool, statements: Statements
) -> list[Candidate]:
    """Return the bundles of these devices, or of all that the last build was for; each may be released.

    statements: gives a device's provenance. Raises ConfigError, VerificationError, GateError and ReleaseError.
    """
    found = []
    for device in chosen(project, once(devices)):
        folder = project.artifacts / device
        manifest, where = read(folder), project.relative(folder)
        if manifest.device != device:
            raise VerificationError(f"{where}: holds the bundle for '{manifest.device}'", hint="build it again")
        check_version(manifest, version, where)
        check_gates(manifest, where)
        statement = statements(project, device)
        check_traced(statement, manifest, where)
        assert statement is not None
        _, dirty, changed = source_of(statement)
        if dirty and not allow_dirty:
            raise uncommitted(where, changed)
        found.append(Candidate(folder, manifest, statement, dirty))
    check_alike(found)
    return found


def chosen(project: Project, devices: Sequence[str]) -> list[str]:
    """Return the devices that are named, or those of the last build. Raises ConfigError."""
    built = sorted(path.parent.name for path in project.artifacts.glob(f"*/{NAME}"))
    last = read_sealed(project.state / "last.json") or {}
    for device in devices:
        if device not in built:
            raise ConfigError(f"there is no bundle for '{device}'", hint=suggestion(device, built, "bundles"))
    default = [device for device in last.get("bundles", {}) if device in built] or built
    if not default:
        raise ConfigError(f"{project.artifacts}: no bundle", hint="'tapeout build' makes them")
    return list(devices) or sorted(default)


def check_version(manifest: Manifest, version: str | None, where: str) -> None:
    """Raise ConfigError where another version is asked for than the bundle is."""
    if version is not None and version != manifest.version:
        raise ConfigError(
            f"{where}: is version {manifest.version}, not {version}",
            hint=f"a bundle holds its version; build it so: tapeout build package.version={version}",
        )


def check_alike(found: Sequence[Candidate]) -> None:
    """Raise ConfigError unless all bundles are of one model and version."""
    kinds = {(each.manifest.name, each.manifest.version): each.device for each in found}
    if len(kinds) > 1:
        listed = ", ".join(f"{device} is {name} {version}" for (name, version), device in sorted(kinds.items()))
        raise ConfigError(
            f"a release has one version for all its devices: {listed}", hint="build them together, or name the devices"
        )


def creation(releases: Releases, state: State, found: Sequence[Candidate], key: SigningKey) -> Decision:
    """Write the archives and sidecars of what is not released yet, and return what is to be recorded.

    What is released already, and is the same, is written again where its files are gone. Raises ReleaseError where a
    version was released with other content.
    """
    version, name = found[0].manifest.version, found[0].manifest.name
    check_history(releases, state, version)
    for each in found:
        check_new(state, each)
    made: dict[str, Mapping[str, Any]] = {}
    lines = []
    for each in found:
        known = state.releases.get((version, each.device))
        archive = releases.archive(version, each.device)
        if known is None or not whole(archive):
            digest = write(archive, each, key)
            if known and known.archive != digest:
                raise VerificationError(
                    f"{archive}: packed again, its sha256 is {digest}, and the history says {known.archive}",
                    hint="use the version of Tapeout that released it",
                )
            lines.append(f"{each.manifest.title}: {releases.project.relative(archive)}")
            if known is None:
                made[each.device] = {"bundle": each.manifest.digest, "archive": digest, **marks(each)}
        else:
            lines.append(f"{each.manifest.title}: released already; the next: tapeout build package.version=VERSION")
    devices = tuple(made) or tuple(each.device for each in found)
    return Decision("create", name, version, devices, tuple(lines), releases=made, changes=bool(made))


def check_history(releases: Releases, state: State, version: str) -> None:
    """Raise ReleaseError where other versions were released here, and the history is empty: it was lost."""
    others = {path.parent.name for path in releases.folder.glob(f"*/*{ARCHIVE}")} - {version}
    if not state.releases and others:
        raise ReleaseError(
            f"{releases.history} is empty, and {', '.join(sorted(others))} was released from here: its history is lost",
            hint="put it back (git checkout, or from the backup); to begin another history, move the old releases away",
        )


def check_new(state: State, candidate: Candidate) -> None:
    """Raise ReleaseError where the version was released for the device with other content, retired, or is another
    model's."""
    manifest = candidate.manifest
    known = state.releases.get((manifest.version, manifest.device))
    another = "choose another version: tapeout build package.version=..."
    if known and known.bundle != manifest.digest:
        raise ReleaseError(
            f"{manifest.title} was released before with other content: bundle {known.bundle[:16]}..., and this one is "
            f"{manifest.digest[:16]}...",
            hint=another,
        )
    if known and known.retired:
        raise ReleaseError(f"{manifest.title} was released and retired", hint=another)
    names = {each.name for (version, _), each in state.releases.items() if version == manifest.version}
    if names - {manifest.name}:
        raise ReleaseError(
            f"release {manifest.version} is of the model {min(names)}, not {manifest.name}", hint=another
        )


def whole(archive: Path) -> bool:
    """Say whether an archive and its provenance are there; what is in them is verified at promotion."""
    return archive.is_file() and sidecars(archive).provenance.is_file()


def write(archive: Path, candidate: Candidate, key: SigningKey) -> str:
    """Write an archive and its sidecars; return the archive's sha256."""
    digest = pack(candidate.folder, archive)
    sign_bundle(archive, [key], candidate.statement)
    return digest


def marks(candidate: Candidate) -> dict[str, bool]:
    return {"dirty": True} if candidate.dirty else {}


def uncommitted(where: str, changed: Sequence[str]) -> ReleaseError:
    listed = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    return ReleaseError(
        f"{where}: was built from sources that no commit holds: {listed or 'there is no revision'}",
        hint="commit them and build again, or release it so, which the history will say: --allow-dirty",
    )
