"""The metadata files of an update repository: reading them without trust, and laying them out as clients ask for them.

    metadata/1.root.json  2.root.json ...     each signed by the keys of the one before it, too
    metadata/timestamp.json                   the only file that is ever replaced; it names a snapshot by its sha256
    metadata/N.snapshot.json                  names N.targets.json and N.channel-NAME.json, by their sha256
    staging/N.root.json                       the next root, until enough keys have signed it

Whatever bytes lie there, reading them raises VerificationError at worst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, VerificationError
from stages.release.manifest import object_of
from stages.release.updates.roles import channel_of

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, MetaFile, Signed

# bytes; what tuf.ngclient reads at most
MAXIMUM = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
BACK = 'put back the repository as it was published: docs/runbook.md, "Restoring a repository"'


@dataclass(frozen=True)
class Layout:
    """Where things lie in an update repository."""

    folder: Path

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    @property
    def targets(self) -> Path:
        return self.folder / "targets"

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def deltas(self) -> Path:
        return self.folder / "deltas"

    @property
    def staging(self) -> Path:
        return self.folder / "staging"

    @property
    def timestamp(self) -> Path:
        return self.metadata / "timestamp.json"

    def versioned(self, role: str, version: int) -> Path:
        return self.metadata / f"{version}.{role}.json"

    def staged(self, version: int) -> Path:
        return self.staging / f"{version}.root.json"

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256[:2] / sha256

    def delta(self, sha256: str) -> Path:
        return self.deltas / sha256[:2] / sha256

    def target(self, path: str, sha256: str) -> Path:
        """Return where a target file lies: its sha256 stands before its name, so that no version replaces another."""
        folder, _, name = path.rpartition("/")
        return self.targets / folder / f"{sha256}.{name}"

    def versions(self, role: str) -> list[int]:
        """Return the versions of a role's metadata that lie here, also those that nothing names; sorted."""
        pattern = re.compile(rf"([1-9][0-9]{{0,8}})\.{re.escape(role)}\.json")
        return sorted(int(found[1]) for name in names(self.metadata) if (found := pattern.fullmatch(name)))


def names(folder: Path) -> Iterator[str]:
    """Yield the names of what lies in a folder; nothing where there is none."""
    if folder.is_dir():
        yield from (path.name for path in folder.iterdir())


def read_bytes(path: Path, role: str) -> bytes:
    """Return a metadata file's bytes. Raises VerificationError where it is missing or too large to be one."""
    most = MAXIMUM[kind_of(role)]
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as cause:
        raise VerificationError(f"{path} cannot be read: {cause.strerror or cause}", hint=BACK) from cause
    if len(data) > most:
        raise VerificationError(f"{path}: more than {most} bytes, the most that is read of {role}", hint=BACK)
    return data


def read(data: bytes, role: str, where: str) -> Metadata[Any]:
    """Return the metadata in the bytes; no signature is checked. where: names them. Raises VerificationError."""
    from tuf.api.metadata import Metadata

    value = object_of(data, where)  # strictly: no name twice, no lone surrogates
    try:
        metadata: Metadata[Any] = Metadata.from_dict(value)
        check_types(metadata.signed)
        if metadata.signed.to_dict() != object_of(data, where)["signed"]:
            raise ValueError("the library reads more or less in it than it says")
        metadata.signed_bytes  # noqa: B018 (what cannot be put in canonical form cannot be verified)
    except Exception as cause:  # what the library raises for bytes from anybody has no common root but this
        raise malformed(where, role, str(cause)) from cause
    if metadata.signed.type != kind_of(role):
        raise malformed(where, role, f"it is metadata of the type {metadata.signed.type}")
    return metadata


def check_types(signed: Signed) -> None:
    """Raise ValueError for a number that is none: the library computes with what it finds."""
    versions: list[Any] = [signed.version]
    meta: dict[str, MetaFile] = getattr(signed, "meta", {})
    versions += [each.version for each in meta.values()]
    if snapshot := getattr(signed, "snapshot_meta", None):
        versions.append(snapshot.version)
    if not all(type(each) is int and 0 < each < 1 << 31 for each in versions):
        raise ValueError("a version that is no whole number")


def malformed(where: str, role: str, why: str) -> VerificationError:
    return VerificationError(f"{where}: not metadata of the role '{role}': {' '.join(why.split())[:200]}", hint=BACK)


def kind_of(role: str) -> str:
    """Return the type of metadata that a role has: a channel's is that of targets."""
    return "targets" if channel_of(role) else role


def written(metadata: Metadata[Any], role: str) -> bytes:
    """Return metadata as its file holds it. Raises ConfigError where clients would not read that much."""
    data: bytes = metadata.to_bytes()
    if len(data) > (most := MAXIMUM[kind_of(role)]):
        raise ConfigError(
            f"the metadata of '{role}' would have {len(data)} bytes; clients read {most} at most",
            hint="retire releases that nobody needs: tapeout release retire VERSION",
        )
    return data
