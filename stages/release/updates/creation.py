"""A fresh update repository: all roles signed, nothing in it yet."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError
from pipelines.files import storing, write_file
from stages.release.layout import check_channel_name
from stages.release.updates import documents, expiry
from stages.release.updates.documents import Layout
from stages.release.updates.repository import Repository, meta_file, open_repository, seal, settle
from stages.release.updates.roles import ONLINE, channel_role, counted, tuf_key

if TYPE_CHECKING:
    from tuf.api.metadata import Root, Targets

    from stages.release.signing.keys import PublicKey, SigningKey


ASIDE = ".metadata."


@dataclass(frozen=True)
class Founding:
    """Whose keys a repository begins with. root: those that may sign the next root, `threshold` of them together; the
    private ones among `signers` sign the first. days: of life, where they differ from expiry.DAYS."""

    root: Sequence[PublicKey]
    threshold: int
    targets: SigningKey
    online: SigningKey
    channels: Mapping[str, SigningKey]
    signers: Sequence[SigningKey]
    days: Mapping[str, int] = field(default_factory=dict)

    @property
    def keys(self) -> list[SigningKey]:
        return [*self.signers, self.targets, self.online, *self.channels.values()]


def create(folder: Path, founding: Founding, now: datetime) -> Repository:
    """Make a repository in a folder that has none.

    Raises ConfigError, also where too few root keys sign; StoreError.
    """
    from tuf.api.metadata import Metadata, Snapshot, Targets, Timestamp

    layout = Layout(folder)
    if os.path.lexists(layout.metadata):
        raise ConfigError(
            f"{folder} holds an update repository already",
            hint="'tapeout repository status' shows it; clients know its root, so that another cannot take its place",
        )
    root, targets = first_root(founding), first_targets(founding)
    parts: dict[str, Any] = {"root": root, "targets": targets}
    parts |= {channel_role(name): Targets(1) for name in founding.channels}
    files, meta = {}, {}
    for role, signed in parts.items():
        delegator = targets if role.startswith("channel-") else root
        data = documents.written(seal(Metadata(signed), role, founding.keys, [delegator], root, now), role)
        files[f"1.{role}.json"] = data
        if role != "root":
            meta[f"{role}.json"] = meta_file(1, data)
    snapshot = seal(
        Metadata(Snapshot(1, meta=dict(sorted(meta.items())))), "snapshot", founding.keys, [root], root, now
    )
    files["1.snapshot.json"] = data = documents.written(snapshot, "snapshot")
    issued = {expiry.ISSUED: expiry.text(now)}
    timestamp = Metadata(Timestamp(1, snapshot_meta=meta_file(1, data), unrecognized_fields=issued))
    seal(timestamp, "timestamp", founding.keys, [root], root, now)
    files["timestamp.json"] = documents.written(timestamp, "timestamp")
    for left in folder.glob(f"{ASIDE}*"):
        shutil.rmtree(left)
    aside = folder / f"{ASIDE}{uuid.uuid4().hex}"  # renamed when it is whole: one that was killed made no repository
    for name, data in files.items():
        write_file(aside / name, data)
    settle(aside)
    with storing(layout.metadata):
        os.rename(aside, layout.metadata)
    settle(folder)
    return open_repository(folder)


def first_root(founding: Founding) -> Root:
    """Return the first root. Raises ConfigError for a threshold that its keys cannot meet."""
    from tuf.api.metadata import Root

    keys = {key.keyid: key for key in founding.root}
    if not 1 <= founding.threshold <= len(keys):
        raise ConfigError(
            f"--threshold {founding.threshold}: there {'is' if len(keys) == 1 else 'are'} "
            f"{counted(len(keys), 'root key')}",
            hint="it says how many of them must sign each root: at least 1, at most all; 2 of 3 is usual",
        )
    root = Root(1, consistent_snapshot=True)
    for key in keys.values():
        root.add_key(tuf_key(key), "root")
    root.roles["root"].threshold = founding.threshold
    root.add_key(tuf_key(founding.targets.public), "targets")
    for role in ONLINE:
        root.add_key(tuf_key(founding.online.public), role)
    root.unrecognized_fields[expiry.FIELD] = {**expiry.DAYS, **founding.days}
    return root


def first_targets(founding: Founding) -> Targets:
    from tuf.api.metadata import Delegations, Targets

    targets = Targets(1, delegations=Delegations({}, {}))
    for name, key in founding.channels.items():
        delegate(targets, name, [key.public])
    return targets


def delegate(targets: Targets, channel: str, keys: Sequence[PublicKey]) -> None:
    """Let keys sign for a channel, and for nothing else; no other role is asked for channels/NAME/.

    Raises ConfigError.
    """
    from tuf.api.metadata import DelegatedRole, Delegations

    role = channel_role(check_channel_name(channel))
    if targets.delegations is None:
        targets.delegations = Delegations({}, {})
    roles = targets.delegations.roles
    assert roles is not None  # we delegate by name, never by hash
    roles[role] = DelegatedRole(role, [], 1, terminating=True, paths=[f"channels/{channel}/*"])
    for key in keys:
        targets.add_key(tuf_key(key), role)
