"""What is released where: the history, folded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.errors import VerificationError
from stages.release.history.entry import Entry, bad, is_digest
from stages.release.history.rollout import BUCKETS, Ranges, share_of

CHANNEL_VERSION = 1  # of the document that clients read
CHAMPION = "champion"
FORMER = 50  # champions that a rollback can go back through


@dataclass(frozen=True)
class Released:
    """A version for a device, by digest. bundle: of its manifest. archive: of DEVICE.tar. sequence: of its entry.

    retired: it is revoked everywhere. dirty: its sources were not committed.
    """

    name: str
    version: str
    device: str
    bundle: str
    archive: str
    retired: bool
    sequence: int
    dirty: bool = False

    @property
    def title(self) -> str:
        return f"{self.name} {self.version} for {self.device}"


@dataclass(frozen=True)
class Arm:
    """Who gets which release. ranges: of buckets, in the order in which they were taken; a champion's are empty: it
    serves whoever is in no arm."""

    name: str
    version: str
    bundle: str
    ranges: Ranges = ()

    @property
    def share(self) -> float:
        """In percent."""
        return share_of(self.ranges)

    def to_json(self) -> dict[str, Any]:
        ranges = [list(each) for each in self.ranges]
        return {"name": self.name, "version": self.version, "bundle": self.bundle, "ranges": ranges}


@dataclass(frozen=True)
class Channel:
    """A channel for one device. former: versions that were champion before, the latest last. revoked: bundles of this
    device that were retired. sequence: of the last entry that changed any of it."""

    channel: str
    device: str
    champion: Arm | None = None
    arms: tuple[Arm, ...] = ()
    salt: str = ""
    former: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()
    sequence: int = 0

    def arm(self, name: str) -> Arm | None:
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def serving(self) -> tuple[Arm, ...]:
        """The champion, if there is one, and the arms."""
        return (*((self.champion,) if self.champion else ()), *self.arms)

    def document(self) -> dict[str, Any]:
        """Return what clients read."""
        return {
            "channel_version": CHANNEL_VERSION,
            "channel": self.channel,
            "device": self.device,
            "sequence": self.sequence,
            "salt": self.salt,
            "champion": named(self.champion),
            "arms": [arm.to_json() for arm in self.arms],
            "revoked": list(self.revoked),
        }

    def to_set(self) -> dict[str, Any]:
        """Return what an entry says of it."""
        return {
            "champion": named(self.champion),
            "arms": [arm.to_json() for arm in self.arms],
            "salt": self.salt,
            "former": list(self.former),
        }


@dataclass(frozen=True)
class State:
    """releases: {(version, device)}. channels: {(channel, device)}. names: those that an arm or champion of a channel
    ever had, by the same keys. sequence, digest: of the last entry; 0 and "" where there is none."""

    releases: Mapping[tuple[str, str], Released] = field(default_factory=dict)
    channels: Mapping[tuple[str, str], Channel] = field(default_factory=dict)
    names: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    sequence: int = 0
    digest: str = ""

    @property
    def head(self) -> str:
        return f"{self.sequence}:{self.digest}"

    def versions(self) -> list[str]:
        """All versions, in the order in which they were created."""
        return list(dict.fromkeys(version for version, _ in self.releases))

    def devices_of(self, version: str) -> list[str]:
        return [device for each, device in self.releases if each == version]

    def channel_names(self) -> list[str]:
        return list(dict.fromkeys(channel for channel, _ in self.channels))

    def devices_on(self, channel: str) -> list[str]:
        return [device for each, device in self.channels if each == channel]

    def channel(self, channel: str, device: str) -> Channel:
        """Return a channel for a device; an empty one where nothing was promoted to it."""
        return self.channels.get((channel, device)) or Channel(channel, device, revoked=self.revoked(device))

    def revoked(self, device: str) -> tuple[str, ...]:
        return revoked(self.releases, device)


def state_of(entries: Iterable[Entry]) -> State:
    """Return what the entries come to. Raises VerificationError where one says what cannot be."""
    releases: dict[tuple[str, str], Released] = {}
    channels: dict[tuple[str, str], Channel] = {}
    names: dict[tuple[str, str], frozenset[str]] = {}
    last: Entry | None = None
    for entry in entries:
        last = entry
        for device, value in entry.releases.items():
            if (entry.version, device) in releases:
                raise wrong(entry, f"{entry.version} for {device} was created before")
            releases[entry.version, device] = Released(
                entry.name,
                entry.version,
                device,
                value["bundle"],
                value["archive"],
                False,
                entry.sequence,
                bool(value.get("dirty")),
            )
        if entry.action == "retire":
            retire(entry, releases, channels)
        for key, channel in set_by(entry, releases).items():
            channels[key] = channel
            names[key] = names.get(key, frozenset()) | {arm.name for arm in channel.serving}
    return State(releases, channels, names, last.sequence if last else 0, last.digest if last else "")


def retire(entry: Entry, releases: dict[tuple[str, str], Released], channels: dict[tuple[str, str], Channel]) -> None:
    """Mark the entry's releases, and tell all channels of their devices."""
    for device in entry.devices:
        if (entry.version, device) not in releases:
            raise wrong(entry, f"retires {entry.version} for {device}, which was never created")
        releases[entry.version, device] = replace(releases[entry.version, device], retired=True)
    for key, channel in channels.items():
        if channel.device in entry.devices:
            bundles = revoked(releases, channel.device)
            channels[key] = replace(channel, revoked=bundles, sequence=entry.sequence)


def revoked(releases: Mapping[tuple[str, str], Released], device: str) -> tuple[str, ...]:
    return tuple(sorted(each.bundle for each in releases.values() if each.retired and each.device == device))


def set_by(entry: Entry, releases: Mapping[tuple[str, str], Released]) -> dict[tuple[str, str], Channel]:
    """Return the channels that the entry sets. Raises VerificationError."""
    found = {}
    for name, devices in entry.set.items():
        for device, value in devices.items() if isinstance(devices, dict) else ():
            try:
                channel = Channel(
                    channel=name,
                    device=device,
                    champion=champion_of(value["champion"]),
                    arms=tuple(arm_from(arm) for arm in value["arms"]),
                    salt=text(value["salt"]),
                    former=tuple(text(version) for version in value["former"]),
                    revoked=revoked(releases, device),
                    sequence=entry.sequence,
                )
            except (KeyError, TypeError, ValueError, AttributeError) as cause:
                raise wrong(entry, f"what it sets of {name} for {device} is not a channel's: {cause!r}") from cause
            check(entry, channel, releases)
            found[name, device] = channel
    return found


def check(entry: Entry, channel: Channel, releases: Mapping[tuple[str, str], Released]) -> None:
    """Raise VerificationError unless all that is served was created and not retired, and no bucket has two arms."""
    for arm in channel.serving:
        known = releases.get((arm.version, channel.device))
        if known is None or known.bundle != arm.bundle or known.retired:
            what = "is retired" if known and known.bundle == arm.bundle else "was never created so"
            raise wrong(entry, f"{channel.channel} for {channel.device}: {arm.name} is {arm.version}, which {what}")
    for version in channel.former:
        if (version, channel.device) not in releases:
            raise wrong(entry, f"{channel.channel} for {channel.device}: {version} was champion, and never created")
    ranges = sorted(each for arm in channel.arms for each in arm.ranges)
    position = 0
    for low, high in ranges:
        if not position <= low < high <= BUCKETS:
            raise wrong(entry, f"{channel.channel} for {channel.device}: ranges of arms overlap, or are none")
        position = high
    if len({arm.name for arm in channel.serving}) != len(channel.serving):
        raise wrong(entry, f"{channel.channel} for {channel.device}: two arms have one name")


def champion_of(value: Any) -> Arm | None:
    return None if value is None else arm_from({"name": CHAMPION, "ranges": [], **value})


def arm_from(value: Mapping[str, Any]) -> Arm:
    ranges = tuple((low, high) for low, high in value["ranges"])
    whole = all(type(each) is int for pair in ranges for each in pair)
    if not (is_digest(value["bundle"]) and whole):
        raise ValueError(f"an arm is {dict(value)!r}")
    return Arm(text(value["name"]), text(value["version"]), value["bundle"], ranges)


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def named(arm: Arm | None) -> dict[str, str] | None:
    return {"version": arm.version, "bundle": arm.bundle} if arm else None


def wrong(entry: Entry, what: str) -> VerificationError:
    return bad(f"the release history, entry {entry.sequence}", what)
