"""An update repository's metadata: opening it with every signature checked, and signing a new state of it.

A state becomes live by one rename, that of timestamp.json; all other files are only ever added, under names of their
own. So a reader sees the state before or the state after, and whoever was killed between the two starts again.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, StoreError, VerificationError
from pipelines.files import storing, write_file
from stages.release.updates import documents, expiry
from stages.release.updates.documents import BACK, Layout
from stages.release.updates.roles import TOP, can_sign, channel_of, channel_role, holds, missing, sign

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

    from stages.release.signing.keys import SigningKey

PATIENCE = 60.0  # s to wait for another process that writes to the same repository


@dataclass(frozen=True)
class Repository:
    """What a repository's timestamp leads to. roots: all of them, the newest last. channels: by name.

    refused: the roles whose metadata the newest root does not accept, because their keys were rotated and nothing was
    signed by the new ones yet; clients stay with what they have until then. next: the root that waits in staging/.
    """

    layout: Layout
    roots: tuple[Metadata[Root], ...]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    channels: Mapping[str, Metadata[Targets]] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    next: Metadata[Root] | None = None

    @property
    def root(self) -> Root:
        return self.roots[-1].signed

    def metadata_of(self, role: str) -> Metadata[Any]:
        if name := channel_of(role):
            return self.channels[name]
        found: Metadata[Any] = self.roots[-1] if role == "root" else getattr(self, role)
        return found

    def delegator(self, role: str) -> Root | Targets:
        return self.targets.signed if channel_of(role) else self.root

    @property
    def roles(self) -> list[str]:
        return [*TOP, *(channel_role(name) for name in self.channels)]

    def signed_now(self, role: str, keys: Sequence[SigningKey]) -> bool:
        """Say whether these keys could sign the role anew."""
        return can_sign(role, keys, self.delegator(role))

    def due(self, role: str, now: datetime) -> bool:
        return expiry.left(role, self.metadata_of(role).signed, self.root, now) < expiry.DUE


def open_repository(folder: Path) -> Repository:
    """Return the live state, its signatures and digests checked, its expiry not.

    Raises ConfigError where there is no repository, VerificationError where it is not what its keys signed.
    """
    layout = Layout(folder)
    if not layout.metadata.is_dir():
        raise absent(folder)
    roots = read_roots(layout)
    timestamp, refused = read_signed(layout, "timestamp", layout.timestamp, roots)
    stale = ["timestamp"] if refused else []
    meta = timestamp.signed.snapshot_meta
    snapshot, refused = read_signed(layout, "snapshot", layout.versioned("snapshot", meta.version), roots, meta)
    stale += ["snapshot"] if refused else []
    meta = named(snapshot, "targets", layout)
    targets, refused = read_signed(layout, "targets", layout.versioned("targets", meta.version), roots, meta)
    stale += ["targets"] if refused else []
    channels = {}
    for role in targets.signed.delegations.roles if targets.signed.delegations else ():
        if name := channel_of(role):
            meta = named(snapshot, role, layout)
            path = layout.versioned(role, meta.version)
            channels[name], _ = read_signed(layout, role, path, [targets], meta)
    return Repository(layout, roots, timestamp, snapshot, targets, channels, tuple(stale), read_staged(layout, roots))


def absent(folder: Path) -> ConfigError:
    return ConfigError(f"{folder} holds no update repository", hint=f"'tapeout repository init {folder}' makes one")


def read_roots(layout: Layout) -> tuple[Metadata[Root], ...]:
    """Return all roots, each signed by the one before and by itself. Raises VerificationError."""
    found: list[Metadata[Root]] = []
    for version in layout.versions("root"):
        path = layout.versioned("root", version)
        root = documents.read(documents.read_bytes(path, "root"), "root", str(path))
        before = found[-1].signed if found else root.signed
        if root.signed.version != version or (found and version != before.version + 1):
            raise VerificationError(f"{path}: holds version {root.signed.version} after {before.version}", hint=BACK)
        if not (holds(root, "root", before) and holds(root, "root", root.signed)):
            raise VerificationError(f"{path}: not signed by enough root keys", hint=BACK)
        found.append(root)
    if not found:
        raise VerificationError(f"{layout.metadata} holds no root metadata", hint=BACK)
    return tuple(found)


def read_signed(
    layout: Layout, role: str, path: Path, delegators: Sequence[Metadata[Any]], meta: Any = None
) -> tuple[Metadata[Any], bool]:
    """Return a role's metadata, and whether the last delegator refuses it while one before it does not.

    meta: what its name, length and digest were signed as. Raises VerificationError.
    """
    from tuf.api.exceptions import LengthOrHashMismatchError

    data = documents.read_bytes(path, role)
    try:
        if meta is not None:
            meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as cause:
        raise VerificationError(f"{path}: not the metadata that was signed: {cause}", hint=BACK) from cause
    metadata = documents.read(data, role, str(path))
    if meta is not None and metadata.signed.version != meta.version:
        raise VerificationError(f"{path}: holds version {metadata.signed.version}", hint=BACK)
    for place, delegator in enumerate(reversed(delegators)):
        if holds(metadata, role, delegator.signed):
            return metadata, place > 0
    raise VerificationError(
        f"{path}: not signed by the keys of '{role}': {missing(metadata, role, delegators[-1].signed).message}",
        hint=BACK,
    )


def named(snapshot: Metadata[Snapshot], role: str, layout: Layout) -> Any:
    """Return what a snapshot says of a role's metadata. Raises VerificationError where it says nothing."""
    meta = snapshot.signed.meta.get(f"{role}.json")
    if meta is None:
        raise VerificationError(f"{layout.metadata}: the snapshot does not name the role '{role}'", hint=BACK)
    return meta


def read_staged(layout: Layout, roots: Sequence[Metadata[Root]]) -> Metadata[Root] | None:
    """Return the root that waits for signatures, or None. One that was overtaken is none. Raises VerificationError."""
    version = roots[-1].signed.version + 1
    path = layout.staged(version)
    if not path.is_file():
        return None
    root = documents.read(documents.read_bytes(path, "root"), "root", str(path))
    if root.signed.version != version:
        raise VerificationError(f"{path}: holds version {root.signed.version}", hint=f"remove {path}, and rotate again")
    return root


def commit(
    repository: Repository,
    keys: Sequence[SigningKey],
    now: datetime,
    *,
    targets: Targets | None = None,
    channels: Mapping[str, Targets] | None = None,
    root: Metadata[Root] | None = None,
    skip: int = 0,
) -> Repository:
    """Sign what changed, and a snapshot and a timestamp of it; write all of it, the timestamp last.

    targets, channels: with their new content; version and expiry are set here. root: signed, to be the newest. skip:
    versions to leave out, for clients may have seen some that were lost. Raises ConfigError where a key is missing,
    before anything is written; StoreError.
    """
    from tuf.api.metadata import Metadata

    before, layout = repository.root, repository.layout
    rule = root.signed if root else before
    # old and new keys both sign where they are here: no client is shut out between one root and the next
    others = [before] if root else [repository.next.signed] if repository.next else []
    files: dict[Path, bytes] = {}
    meta = dict(repository.snapshot.signed.meta)
    fresh: dict[str, Metadata[Any]] = {}
    changed = {"targets": targets} if targets else {}
    changed |= {channel_role(name): signed for name, signed in (channels or {}).items()}
    for role, signed in changed.items():
        delegators = [(targets or repository.targets.signed)] if channel_of(role) else [rule, *others]
        signed.version = following(repository, role) + skip
        fresh[role] = seal(Metadata(signed), role, keys, delegators, rule, now)
        data = documents.written(fresh[role], role)
        files[layout.versioned(role, signed.version)] = data
        meta[f"{role}.json"] = meta_file(signed.version, data)
    snapshot = copy.deepcopy(repository.snapshot.signed)
    snapshot.version, snapshot.meta = following(repository, "snapshot") + skip, dict(sorted(meta.items()))
    fresh["snapshot"] = seal(Metadata(snapshot), "snapshot", keys, [rule, *others], rule, now)
    data = documents.written(fresh["snapshot"], "snapshot")
    files[layout.versioned("snapshot", snapshot.version)] = data
    timestamp = copy.deepcopy(repository.timestamp.signed)
    timestamp.version, timestamp.snapshot_meta = timestamp.version + 1 + skip, meta_file(snapshot.version, data)
    timestamp.unrecognized_fields[expiry.ISSUED] = expiry.text(now)
    fresh["timestamp"] = seal(Metadata(timestamp), "timestamp", keys, [rule, *others], rule, now)
    last = [(layout.timestamp, documents.written(fresh["timestamp"], "timestamp"))]
    if root:
        both = {**{role: repository.metadata_of(role) for role in ("targets",)}, **fresh}
        welcome = all(holds(each, role, before) for role, each in both.items() if not channel_of(role))
        step = (layout.versioned("root", root.signed.version), documents.written(root, "root"))
        last = [*last, step] if welcome else [step, *last]
    for path, data in files.items():
        write_file(path, data)
    settle(layout.metadata)
    for path, data in last:
        write_file(path, data)
        settle(layout.metadata)
    if root:
        layout.staged(root.signed.version).unlink(missing_ok=True)
    return open_repository(layout.folder)


def following(repository: Repository, role: str) -> int:
    """Return the next version of a role: higher than any that lies there, since a killed process may have left some."""
    live = repository.metadata_of(role).signed.version if role in repository.roles else 0
    return int(max([live, *repository.layout.versions(role)]) + 1)


def seal(
    metadata: Metadata[Any],
    role: str,
    keys: Sequence[SigningKey],
    delegators: Sequence[Root | Targets],
    root: Root,
    now: datetime,
) -> Metadata[Any]:
    """Set when metadata expires, and sign it."""
    metadata.signed.expires = now + expiry.lifetime(role, root)
    sign(metadata, role, keys, delegators)
    return metadata


def meta_file(version: int, data: bytes) -> Any:
    """Return what a snapshot or timestamp says of a metadata file."""
    from tuf.api.metadata import MetaFile

    return MetaFile.from_data(version, data, ["sha256"])


def refresh(
    repository: Repository, keys: Sequence[SigningKey], now: datetime, everything: bool = False, skip: int = 0
) -> tuple[Repository, list[str]]:
    """Sign snapshot and timestamp anew, and with them each role that half of its life has passed for, if its key is
    here, or that must be signed by a new key. everything: each role whose key is here. skip: versions to leave out;
    then all roles are signed.

    Return the new state, and the roles. Raises ConfigError.
    """
    also = {}
    for role in ("targets", *(channel_role(name) for name in repository.channels)):
        wanted = everything or repository.due(role, now)
        if skip or role in repository.refused or (wanted and repository.signed_now(role, keys)):
            also[role] = copy.deepcopy(repository.metadata_of(role).signed)
    channels = {channel_of(role): signed for role, signed in also.items() if channel_of(role)}
    done = commit(repository, keys, now, targets=also.get("targets"), channels=channels, skip=skip)
    return done, [*also, "snapshot", "timestamp"]


def settle(*folders: Path) -> None:
    """Have the names of what was written into the folders on the disk, before a name is written that leads to them."""
    for folder in folders:
        with storing(folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def alone(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Have the repository to this process; the system ends that with the process.

    Raises ConfigError where there is no such folder, StoreError where another process has it for more than `patience`.
    """
    if not folder.is_dir():
        raise absent(folder)
    with storing(folder):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # no file that would be served
    try:
        until = time.monotonic() + patience
        while True:
            try:
                with storing(folder):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except StoreError as cause:
                if not isinstance(cause.__cause__, BlockingIOError):
                    raise
                if time.monotonic() >= until:
                    raise StoreError(
                        f"{folder}: another process writes to this repository",
                        hint=f"waited {patience:g} s for it; try again when it has finished",
                    ) from None
                time.sleep(min(0.1, patience))
        yield
    finally:
        os.close(lock)
