"""What an update repository lacks of what the signed history says. Looking changes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, VerificationError
from stages.release.layout import Releases, sidecars
from stages.release.manifest import sha256_of
from stages.release.updates import delta_index
from stages.release.updates.adding import (
    SIDECARS,
    bundle_path,
    is_there,
    lacking,
    read_manifest,
    read_target,
    target_paths,
)
from stages.release.updates.channel_document import parse_channel
from stages.release.updates.repository import Repository
from stages.release.updates.roles import ONLINE, channel_role

if TYPE_CHECKING:
    from stages.release.history.state import Channel, Released, State
    from stages.release.signing.keys import SigningKey

HISTORY = "x-tapeout-history"  # in the signed part of targets and channels: the last entry that they were made from


@dataclass
class Plan:
    """releases: to add. mend: published ones whose blobs are not all there.

    removed: targets of which the history does not know. documents: {channel: {path: bytes}}; strays: {channel: targets
    that are none}. deltas: (release, bundle to come from) to make. dropped: targets of deltas for nobody. renewed:
    roles that half of its life has passed for, and whose key is here. refused: roles that clients refuse. marked: roles
    that were published from a history that was given up.
    """

    releases: list[Released] = field(default_factory=list)
    mend: list[Released] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    documents: dict[str, dict[str, bytes]] = field(default_factory=dict)
    strays: dict[str, list[str]] = field(default_factory=dict)
    deltas: list[tuple[Released, str]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    refused: tuple[str, ...] = ()
    marked: tuple[str, ...] = ()

    @property
    def roles(self) -> list[str]:
        """The roles that must sign something."""
        targets = self.releases or self.removed or self.deltas or self.dropped or "targets" in self.refused
        channels = [channel_role(name) for name in (*self.documents, *self.strays)]
        wanted = [*(["targets"] if targets else []), *channels, *self.renewed, *self.refused, *self.marked]
        found = [role for role in dict.fromkeys(wanted) if role not in ONLINE]
        return [*found, *ONLINE] if wanted else []

    @property
    def empty(self) -> bool:
        return not (self.roles or self.mend)


def planned(
    repository: Repository,
    releases: Releases,
    state: State,
    keys: Sequence[SigningKey],
    now: datetime,
    check: bool = False,
) -> Plan:
    """Return what the repository lacks. check: hash its blobs, too.

    Raises ConfigError for a channel that it has no role for, VerificationError where it holds another bundle.
    """
    plan = Plan(refused=repository.refused)
    targets = repository.targets.signed.targets
    for release in served(state):
        found = targets.get(bundle_path(release.device, release.version))
        if found is None:
            plan.releases.append(release)
        elif found.hashes.get("sha256") != release.bundle:
            raise VerificationError(
                f"the repository has another bundle as {release.title} than the history: "
                f"{found.hashes.get('sha256')} instead of {release.bundle}",
                hint="a version that was published stays what it was: create another, 'tapeout release create'",
            )
        elif repository.signed_now("targets", keys) and signed_anew(repository, releases, release):
            plan.releases.append(release)
        elif wanting(repository, release.bundle, check):
            (plan.mend if readable(repository, release.bundle) else plan.releases).append(release)
    plan.removed = list(unknown_paths(state, targets))
    for channel in state.channels.values():
        plan_document(plan, repository, channel)
    for name, metadata in repository.channels.items():
        known = {document_path(name, device) for device in state.devices_on(name)}
        if strays := [path for path in metadata.signed.targets if path not in known]:
            plan.strays[name] = strays
    if repository.signed_now("targets", keys):
        plan_deltas(plan, repository, state)
    roles = ["targets", *(channel_role(name) for name in repository.channels), *ONLINE]
    plan.renewed = [role for role in roles if repository.due(role, now) and repository.signed_now(role, keys)]
    return plan


def served(state: State) -> list[Released]:
    """Return the releases that a channel names, each once, in the order of the history."""
    named = {(arm.version, channel.device) for channel in state.channels.values() for arm in channel.serving}
    return [release for key, release in state.releases.items() if key in named]


def wanting(repository: Repository, bundle: str, check: bool = False) -> bool:
    """Say whether files of a published bundle are not there."""
    if not readable(repository, bundle):
        return True
    found = delta_index.known(repository.targets.signed.targets)[bundle]
    return any(lacking(repository.layout, read_manifest(repository.layout, *found).files, check))


def readable(repository: Repository, bundle: str) -> bool:
    """Say whether a published bundle's manifest is there."""
    path, target = delta_index.known(repository.targets.signed.targets)[bundle]
    return is_there(repository.layout.target(path, bundle), target.length, bundle, check=True)


def signed_anew(repository: Repository, releases: Releases, release: Released) -> bool:
    """Say whether a release's signatures here are others than those that are published: its key was replaced."""
    beside = sidecars(releases.archive(release.version, release.device))
    for name, path in zip(SIDECARS, (beside.provenance, beside.signature), strict=True):
        target = repository.targets.signed.targets.get(bundle_path(release.device, release.version, name))
        if path.is_file() and (target is None or target.hashes.get("sha256") != sha256_of(path)):
            return True
    return False


def unknown_paths(state: State, targets: Mapping[str, Any]) -> Iterator[str]:
    """Yield the targets that the history does not know, or no more: of releases that were retired, above all.

    Deltas that lead away from a retired release stay.
    """
    indexes = delta_index.indexed(targets)
    known: set[str] = set()
    for release in state.releases.values():
        found = targets.get(bundle_path(release.device, release.version))
        if not release.retired and found is not None and found.hashes.get("sha256") == release.bundle:
            known.update(target_paths(release.device, release.version))
            sources = indexes.get((release.version, release.device), [])
            known.update(delta_index.index_path(release.device, release.version, source) for source in sources)
    yield from (path for path in targets if path not in known)


def plan_document(plan: Plan, repository: Repository, channel: Channel) -> None:
    """Note a channel's document where another one is published. Raises ConfigError where the channel has no role."""
    if channel.channel not in repository.channels:
        raise ConfigError(
            f"the history has a channel '{channel.channel}', and the repository has no role for it",
            hint=f"'tapeout repository channel DIR {channel.channel} --key ...' adds it",
        )
    path = document_path(channel.channel, channel.device)
    text = json.dumps(channel.document(), sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    found = repository.channels[channel.channel].signed.targets.get(path)
    digest = hashlib.sha256(text.encode()).hexdigest()
    there = is_there(repository.layout.target(path, digest), len(text.encode()), digest, check=True)
    if found is None or found.hashes.get("sha256") != digest or not there:
        plan.documents.setdefault(channel.channel, {})[path] = text.encode()


def document_path(channel: str, device: str) -> str:
    return f"channels/{channel}/{device}.json"


def plan_deltas(plan: Plan, repository: Repository, state: State) -> None:
    """Note which deltas are missing, and which are for nobody any more.

    The likeliest bundles to come from are those that channels name now, then those that they named until now, then
    those that there are deltas from already, then the latest of the others.
    """
    targets, layout = repository.targets.signed.targets, repository.layout
    published, indexes, now_serving = delta_index.known(targets), delta_index.indexed(targets), served(state)
    coming = {release.bundle for release in (*plan.releases, *plan.mend)}
    for release in now_serving:
        device = release.device
        had = indexes.get((release.version, device), [])
        whole = [each for each in had if delta_index.intact(layout, targets, device, release.version, each)]
        latest = [each for each in reversed(list(state.releases.values())) if each.device == device]

        def there(bundle: str, whole: list[str] = whole) -> bool:
            # only what can be read, so that the next run does not find the same deltas missing again
            return bundle in coming or bundle in whole or (bundle in published and not wanting(repository, bundle))

        wanted = delta_index.sources(
            release.bundle,
            there,
            [each.bundle for each in reversed(now_serving) if each.device == device],
            named_until_now(repository, device),
            whole,
            [each.bundle for each in latest if not each.retired],
        )
        plan.deltas += [(release, source) for source in wanted if source not in whole]
        plan.dropped += [delta_index.index_path(device, release.version, each) for each in had if each not in wanted]
    # the deltas to the champion before stay: a rollback in an emergency is published without the release key
    kept = {(each.version, each.device) for each in now_serving}
    kept |= {(channel.former[-1], channel.device) for channel in state.channels.values() if channel.former}
    for (version, device), had in indexes.items():
        if (version, device) in state.releases.keys() - kept:
            plan.dropped += [delta_index.index_path(device, version, each) for each in had]


def named_until_now(repository: Repository, device: str) -> list[str]:
    """Return the bundles that the published documents name for a device."""
    found = []
    for name, metadata in repository.channels.items():
        path = document_path(name, device)
        if target := metadata.signed.targets.get(path):
            with contextlib.suppress(VerificationError):  # one that no client can read is about to be replaced
                document = parse_channel(read_target(repository.layout, path, target), name, device, path).value
                found += [each["bundle"] for each in (document["champion"], *document["arms"]) if each]
    return found


def strangers(repository: Repository, state: State, heads: Mapping[int, str]) -> dict[str, VerificationError]:
    """Return {role: why} of what was published from a history that this one does not go on from."""
    found = {}
    for role in ("targets", *(channel_role(name) for name in repository.channels)):
        mark = repository.metadata_of(role).signed.unrecognized_fields.get(HISTORY)
        if mark is None:
            continue
        sequence, digest = mark["sequence"], mark["sha256"]
        if sequence > state.sequence:
            found[role] = VerificationError(
                f"the history has {state.sequence} entries, and the repository's '{role}' was published from entry "
                f"{sequence}: its end is missing",
                hint="get the newest releases/history.jsonl (git pull), and find out who cut it",
            )
        elif heads.get(sequence, digest) != digest:
            found[role] = VerificationError(
                f"the repository's '{role}' was published from another history: its entry {sequence} is "
                f"{digest[:16]}..., and here it is {heads[sequence][:16]}...",
                hint="publish from the history that it belongs to; --another-history where that one was given up",
            )
    return found
