"""Publishing: an update repository becomes what the signed history says.

What clients would download comes first, under names that nothing leads to yet; then metadata, the timestamp last. So a
reader always finds a whole state, whenever this process is killed, and running it again finishes the work. A second run
finds nothing to do, and writes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.release.layout import Releases
from stages.release.updates import delta_index, expiry, pruning
from stages.release.updates.adding import Added, add_release, read_manifest
from stages.release.updates.publish_plan import HISTORY, Plan, planned, strangers
from stages.release.updates.repository import PATIENCE, Repository, alone, commit, open_repository, settle
from stages.release.updates.roles import ONLINE, channel_of, check_keys
from stages.release.updates.signers import check_signers

if TYPE_CHECKING:
    from stages.release.history.state import State
    from stages.release.signing.keys import PublicKey, SigningKey


@dataclass(frozen=True)
class Published:
    """What a publication did. repository: the live state after it. signed: roles; empty: nothing changed.

    added, mended: titles of releases. documents, removed: target files. files, size: of new blobs, in bytes. deltas:
    pairs of releases that got some, of delta_size bytes. pruned: files, and their bytes. notes: what somebody should
    see to.
    """

    repository: Repository
    signed: Sequence[str] = ()
    added: Sequence[str] = ()
    mended: Sequence[str] = ()
    documents: Sequence[str] = ()
    removed: Sequence[str] = ()
    files: int = 0
    size: int = 0
    deltas: int = 0
    delta_size: int = 0
    pruned: tuple[int, int] = (0, 0)
    notes: Sequence[str] = field(default_factory=list)


def publish(
    directory: Path,
    releases: Releases,
    state: State,
    keys: Sequence[SigningKey],
    *,
    trusted: Sequence[PublicKey],
    accepted: Sequence[PublicKey] = (),
    heads: Mapping[int, str] | None = None,
    now: datetime | None = None,
    check: bool = False,
    prune: bool = False,
    another_history: bool = False,
    patience: float = PATIENCE,
) -> Published:
    """Make the repository in `directory` what `state` says.

    trusted: whose signatures on bundles count. accepted: whose new entries of the history count, besides those by the
    keys of root, targets and channels. heads: {sequence: digest} of the whole history, by which one that this
    repository was not published from is told; another_history: that one was given up. check: hash all blobs, too.
    prune: remove what nothing leads to any more. patience: s to wait for another process. Raises VerificationError for
    an archive or a repository that is not what was signed, for a history that is shorter than the published one, or
    another, and for an entry by a key that is not known; GateError; ConfigError for a missing key, channel or archive;
    StoreError.
    """
    moment = expiry.seconds(now)
    with alone(directory, patience):
        repository = open_repository(directory)
        strange = strangers(repository, state, heads or {state.sequence: state.digest})
        if strange and not another_history:
            raise next(iter(strange.values()))
        check_signers(repository, releases, state, keys, accepted, tuple(strange))
        plan = planned(repository, releases, state, keys, moment, check)
        plan.marked = tuple(strange)
        notes = list(to_see_to(plan, repository, keys, moment))
        # all keys are asked for first, before much work is done for nothing
        check_keys([(role, repository.delegator(role)) for role in plan.roles], keys)
        added, delta_size = add(plan, repository, releases, trusted, check)
        if plan.roles:
            repository = sign_plan(plan, repository, added.targets, state, keys, moment)
        pruned = pruning.prune(repository) if prune else (0, 0)
    return Published(
        repository,
        signed=plan.roles,
        added=[release.title for release in plan.releases],
        mended=[release.title for release in plan.mend],
        documents=sorted(path for paths in plan.documents.values() for path in paths),
        removed=sorted([*plan.removed, *plan.dropped, *(path for paths in plan.strays.values() for path in paths)]),
        files=added.files,
        size=added.size,
        deltas=len(plan.deltas),
        delta_size=delta_size,
        pruned=pruned,
        notes=notes,
    )


def add(
    plan: Plan, repository: Repository, releases: Releases, trusted: Sequence[PublicKey], check: bool
) -> tuple[Added, int]:
    """Add blobs, deltas and target files; return them, and the bytes of deltas. All of it is on the disk then."""
    layout, added, delta_size = repository.layout, Added(), 0
    for release in plan.releases:
        add_release(layout, releases, release, trusted, added, check)
    for release in plan.mend:
        add_release(layout, releases, release, trusted, added, check, only_blobs=True)
    known = delta_index.known({**repository.targets.signed.targets, **added.targets})
    for release, source in plan.deltas:
        old, new = (read_manifest(layout, *known[bundle]) for bundle in (source, release.bundle))
        delta_size += delta_index.add_deltas(layout, release.device, release.version, old, new, added)
    for paths in plan.documents.values():
        for path, data in paths.items():
            added.target(layout, path, data)
    folders = {each for folder in added.folders for each in (folder, *folder.parents)}
    settle(*sorted(each for each in folders if each == layout.folder or layout.folder in each.parents))
    return added, delta_size


def sign_plan(
    plan: Plan,
    repository: Repository,
    added: Mapping[str, Any],
    state: State,
    keys: Sequence[SigningKey],
    now: datetime,
) -> Repository:
    """Have what was added named by metadata."""
    fresh = {role: copy.deepcopy(repository.metadata_of(role).signed) for role in plan.roles if role not in ONLINE}
    if "targets" in fresh:
        named = {path: each for path, each in added.items() if not path.startswith("channels/")}
        gone = {*plan.removed, *plan.dropped}
        kept = {path: each for path, each in fresh["targets"].targets.items() if path not in gone}
        fresh["targets"].targets = dict(sorted({**kept, **named}.items()))
    channels = {channel_of(role): signed for role, signed in fresh.items() if channel_of(role)}
    for name, signed in channels.items():
        kept = {path: each for path, each in signed.targets.items() if path not in plan.strays.get(name, [])}
        signed.targets = dict(sorted({**kept, **{path: added[path] for path in plan.documents.get(name, [])}}.items()))
    for signed in fresh.values():
        signed.unrecognized_fields[HISTORY] = {"sequence": state.sequence, "sha256": state.digest}
    return commit(repository, keys, now, targets=fresh.get("targets"), channels=channels)


def to_see_to(plan: Plan, repository: Repository, keys: Sequence[SigningKey], now: datetime) -> Iterator[str]:
    """Yield what should be signed and is not, because its key is not here."""
    for role in repository.roles:
        signed = repository.metadata_of(role).signed
        share = expiry.left(role, signed, repository.root, now)
        if share < expiry.WARN and role not in plan.roles:
            what = "has expired, and clients refuse it since" if share <= 0 else "expires at"
            yield f"the metadata of '{role}' {what} {expiry.text(signed.expires)}: sign it anew, with its key"
    if repository.next:
        yield f"root {repository.next.signed.version} waits for signatures in {repository.layout.staging}"
    if plan.documents and not repository.signed_now("targets", keys):
        yield "no deltas were looked for: that takes the key of the role 'targets'"
