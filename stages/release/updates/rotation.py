"""Changing whose keys a repository trusts: a new root, signed by the old keys and the new ones.

Root keys are kept apart, so their holders sign one after the other: the next root waits in staging/ and becomes live
with the signature that completes both thresholds, the old root's and its own. Clients who know any root before follow.
Keys of channels are named by the role targets; changing those takes the release key and the online key.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from pipelines.errors import ConfigError
from pipelines.files import write_file
from stages.release.updates import documents, expiry
from stages.release.updates.creation import delegate
from stages.release.updates.repository import Repository, commit, open_repository, settle
from stages.release.updates.roles import (
    ONLINE,
    SHORT,
    TOP,
    can_sign,
    channel_of,
    counted,
    holds,
    keys_of,
    title,
    tuf_key,
)

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Root, Targets

    from stages.release.signing.keys import PublicKey, SigningKey


@dataclass(frozen=True)
class Change:
    """What is to be different of a role. new: keys that may sign for it. old: ids, or their beginnings, of keys that
    may no more; empty: the only one that it has. keep: remove none. threshold: how many must sign."""

    new: Sequence[PublicKey] = ()
    old: Sequence[str] = ()
    keep: bool = False
    threshold: int | None = None
    days: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rotated:
    """waiting: who has yet to sign the root that is staged; empty: it is live."""

    repository: Repository
    waiting: tuple[str, ...] = ()


def rotate(
    repository: Repository, roles: Sequence[str], change: Change, keys: Sequence[SigningKey], now: datetime
) -> Rotated:
    """Change the roles of TOP, or one channel's. A root that too few have signed is staged. Raises ConfigError."""
    from tuf.api.metadata import Metadata

    if any(channel_of(role) for role in roles):
        (role,) = roles
        return Rotated(rotate_channel(repository, role, change, keys, now))
    if repository.next:
        path = repository.layout.staged(repository.root.version + 1)
        raise ConfigError(
            f"{path} waits for signatures already, and there is one next root at a time",
            hint=f"'tapeout repository sign' signs it; or remove {path}",
        )
    root = copy.deepcopy(repository.root)
    root.version += 1
    if change.days:
        root.unrecognized_fields[expiry.FIELD] = {**root.unrecognized_fields.get(expiry.FIELD, {}), **change.days}
    for role in roles:
        apply(root, role, change)
    root.expires = now + expiry.lifetime("root", root)
    return propose(repository, Metadata(root), keys, now)


def sign_staged(repository: Repository, keys: Sequence[SigningKey], now: datetime) -> Rotated:
    """Add signatures to the root that is staged.

    Raises ConfigError where none waits, or none of these keys is asked.
    """
    if repository.next is None:
        raise ConfigError(
            f"{repository.layout.staging} holds no root that waits for signatures",
            hint="'tapeout repository rotate' makes one",
        )
    named = {keyid for root in (repository.root, repository.next.signed) for keyid in root.roles["root"].keyids}
    if not named & {key.public.keyid for key in keys}:
        known = {**repository.root.keys, **repository.next.signed.keys}
        raise ConfigError(
            f"none of these keys is asked to sign root {repository.next.signed.version}",
            hint=f"asked are {', '.join(title(keyid, known) for keyid in sorted(named))}",
        )
    return propose(repository, repository.next, keys, now)


def propose(repository: Repository, root: Metadata[Root], keys: Sequence[SigningKey], now: datetime) -> Rotated:
    """Sign a next root with the keys that are asked; stage it, or make it live where that is enough."""
    layout, before = repository.layout, repository.root
    for key in keys:
        if key.public.keyid in {*before.roles["root"].keyids, *root.signed.roles["root"].keyids}:
            root.sign(key.tuf_signer(), append=True)
    if holds(root, "root", before) and holds(root, "root", root.signed):
        return Rotated(go_live(repository, root, keys, now))
    write_file(layout.staged(root.signed.version), documents.written(root, "root"))
    settle(layout.staging)
    return Rotated(open_repository(layout.folder), tuple(unsigned(root, before)))


def go_live(repository: Repository, root: Metadata[Root], keys: Sequence[SigningKey], now: datetime) -> Repository:
    """Write a root that enough have signed, and with it what its new keys must sign anew, as far as they are here.

    What they do not sign is in .refused of what is returned: clients wait for it.
    """
    broken = [role for role in TOP[1:] if not holds(repository.metadata_of(role), role, root.signed)]
    if broken and all(can_sign(role, keys, root.signed) for role in {*broken, *ONLINE}):
        targets = copy.deepcopy(repository.targets.signed) if "targets" in broken else None
        return commit(repository, keys, now, targets=targets, root=root)
    version, layout = root.signed.version, repository.layout
    write_file(layout.versioned("root", version), documents.written(root, "root"))
    settle(layout.metadata)
    layout.staged(version).unlink(missing_ok=True)
    return open_repository(layout.folder)


def apply(delegator: Root | Targets, role: str, change: Change) -> None:
    """Change who may sign for a role. Raises ConfigError where that could be nobody, or is not said clearly."""
    entry = delegator.get_delegated_role(role)
    known = keys_of(delegator)
    leaving = [found(word, role, delegator) for word in change.old]
    if change.new and not leaving and not change.keep:
        if len(entry.keyids) > 1:
            raise ConfigError(
                f"the role '{role}' has {len(entry.keyids)} keys: "
                f"{', '.join(title(keyid, known) for keyid in entry.keyids)}",
                hint="say which one is replaced, with --old KEYID, or --keep all of them beside the new one",
            )
        leaving = list(entry.keyids)
    arriving = {key.keyid for key in change.new}
    for key in change.new:
        delegator.add_key(tuf_key(key), role)
    for keyid in leaving:
        if keyid not in arriving:
            delegator.revoke_key(keyid, role)
    entry.threshold = change.threshold or entry.threshold
    if not 1 <= entry.threshold <= len(entry.keyids):
        raise ConfigError(
            f"the role '{role}' would have {counted(len(entry.keyids), 'key')} and need {entry.threshold}",
            hint="add a key with --new, or set another --threshold",
        )


def found(word: str, role: str, delegator: Root | Targets) -> str:
    """Return the id of a role's key that a word begins. Raises ConfigError unless it is one."""
    entry = delegator.get_delegated_role(role)
    fitting = [keyid for keyid in entry.keyids if keyid.startswith(word)]
    if len(fitting) != 1 or len(word) < 6:
        raise ConfigError(
            f"--old {word}: {'no key' if not fitting else 'not one key'} of the role '{role}'",
            hint=f"its keys: {', '.join(title(keyid, keys_of(delegator)) for keyid in entry.keyids)}; "
            f"the first {SHORT} characters of an id are enough",
        )
    return fitting[0]


def rotate_channel(
    repository: Repository, role: str, change: Change, keys: Sequence[SigningKey], now: datetime
) -> Repository:
    """Change who may sign for a channel, and sign it so. Raises ConfigError where one of the keys is missing."""
    targets = copy.deepcopy(repository.targets.signed)
    apply(targets, role, change)
    name = channel_of(role)
    signed = copy.deepcopy(repository.channels[name].signed)
    return commit(repository, keys, now, targets=targets, channels={name: signed})


def add_channel(
    repository: Repository, name: str, key: PublicKey | None, keys: Sequence[SigningKey], now: datetime
) -> Repository:
    """Add a channel that names nothing yet. key: who signs for it; None: the keys of the role targets.

    Raises ConfigError where there is such a channel, or a key is missing.
    """
    from tuf.api.metadata import Targets

    if name in repository.channels:
        raise ConfigError(
            f"there is a channel '{name}' already",
            hint=f"'tapeout repository rotate' changes the key of channel-{name}",
        )
    targets = copy.deepcopy(repository.targets.signed)
    allowed = set(repository.root.roles["targets"].keyids)
    own = [each.public for each in keys if each.public.keyid in allowed]
    if not own:
        raise ConfigError(
            "adding a channel takes the key of the role 'targets': one of "
            + ", ".join(title(keyid, repository.root.keys) for keyid in sorted(allowed)),
            hint="name the file of the private key with --key; nothing was written",
        )
    delegate(targets, name, [key] if key else own)
    return commit(repository, keys, now, targets=targets, channels={name: Targets(1)})


def differences(before: Root, after: Root) -> Iterator[str]:
    """Yield what a new root changes, for those who are asked to sign it."""
    known = {**before.keys, **after.keys}
    for role in TOP:
        old, new = before.roles[role], after.roles[role]
        yield from (f"{role}: + {title(keyid, known)}" for keyid in new.keyids if keyid not in old.keyids)
        yield from (f"{role}: - {title(keyid, known)}" for keyid in old.keyids if keyid not in new.keyids)
        if old.threshold != new.threshold:
            yield f"{role}: {new.threshold} of {len(new.keyids)} must sign, before {old.threshold} of {len(old.keyids)}"
    days = [root.unrecognized_fields.get(expiry.FIELD) for root in (before, after)]
    if days[0] != days[1]:
        yield f"days of life: {days[1]}, before {days[0]}"
    yield f"expires: {expiry.text(after.expires)}, before {expiry.text(before.expires)}"


def unsigned(root: Metadata[Root], before: Root) -> Iterator[str]:
    """Yield who has yet to sign a new root: "1 of alice (3f2a...), bob (91bc...)"."""
    result = root.signed.get_root_verification_result(before, root.signed_bytes, root.signatures)
    known = {**before.keys, **root.signed.keys}
    said = set()
    for part, whose in ((result.first, f"root {before.version}"), (result.second, f"root {root.signed.version}")):
        if part.missing:
            names = ", ".join(title(keyid, known) for keyid in part.unsigned)
            line = f"{part.missing} more of {names}"
            if line not in said:
                said.add(line)
                yield f"{line} (for {whose})"
