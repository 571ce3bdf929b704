"""What a command on releases comes to, before it is signed: new states of channels, and words for it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import ConfigError, suggestion
from stages.release.history.state import CHAMPION, Channel, Released, State
from stages.release.layout import check_channel_name

ARM = re.compile(r"[a-z0-9][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class Decision:
    """devices: that it is about. lines: what is said of it. channels: as they are to be. releases: by device, that were
    created. changes: whether there is anything to record.
    """

    action: str
    name: str
    version: str
    devices: tuple[str, ...]
    lines: tuple[str, ...]
    channel: str | None = None
    channels: tuple[Channel, ...] = ()
    changes: bool = True
    releases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_entry(self) -> dict[str, Any]:
        """Return the members of the entry that records it."""
        found: dict[str, dict[str, Any]] = {}
        for channel in self.channels:
            found.setdefault(channel.channel, {})[channel.device] = channel.to_set()
        members = {"name": self.name, "version": self.version, "devices": self.devices, "channel": self.channel}
        return {**members, "releases": dict(self.releases), "set": found}


@dataclass
class Changes:
    """Collects what becomes of each device's channel."""

    channels: list[Channel] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def add(self, channel: Channel, said: str) -> None:
        self.channels.append(channel)
        self.lines.append(f"{channel.channel} {channel.device}: {said}")

    def unchanged(self, channel: Channel, said: str) -> None:
        self.lines.append(f"{channel.channel} {channel.device}: {said}")


def salt_for(channel: str, device: str, following: tuple[int, str]) -> str:
    """Return the salt of an experiment that begins with the entry of this (sequence, previous)."""
    number, previous = following
    return hashlib.sha256(f"{previous}:{number}:{channel}:{device}".encode()).hexdigest()[:32]


def found_release(state: State, version: str, device: str) -> Released:
    """Return what was released. Raises ConfigError for an unknown version, or a device that it is not for."""
    check_version(state, version)
    if (version, device) not in state.releases:
        raise ConfigError(
            f"release {version} is not for '{device}'",
            hint=suggestion(device, state.devices_of(version), f"{version} is for"),
        )
    return state.releases[version, device]


def check_version(state: State, version: str) -> None:
    if version not in state.versions():
        known = suggestion(version, state.versions(), "releases")
        raise ConfigError(
            f"there is no release '{version}'",
            hint=f"{known}; 'tapeout build package.version={version}', then 'tapeout release create', makes it",
        )


def releases_of(state: State, version: str, devices: Sequence[str]) -> list[Released]:
    """Return a version's releases for these devices, or for all that it has. Raises ConfigError."""
    check_version(state, version)
    return [found_release(state, version, device) for device in once(devices) or state.devices_of(version)]


def channels_of(state: State, name: str, devices: Sequence[str]) -> list[Channel]:
    """Return a channel for these devices, or for all that it has. Raises ConfigError for what is not there."""
    if name not in state.channel_names():
        raise ConfigError(f"there is no channel '{name}'", hint=suggestion(name, state.channel_names(), "channels"))
    for device in devices:
        if (name, device) not in state.channels:
            raise ConfigError(
                f"channel {name} has nothing for '{device}'",
                hint=suggestion(device, state.devices_on(name), f"{name} has"),
            )
    return [state.channels[name, device] for device in once(devices) or state.devices_on(name)]


def check_channel(state: State, name: str, new: bool) -> None:
    """Raise ConfigError for a name that cannot be a channel's, or is new while others exist, unless `new` is said."""
    check_channel_name(name)
    known = state.channel_names()
    if known and name not in known and not new:
        raise ConfigError(
            f"there is no channel '{name}' yet",
            hint=f"{suggestion(name, known, 'channels')}; --new-channel makes it",
        )


def check_arm(name: str) -> None:
    if not ARM.fullmatch(name) or name == CHAMPION:
        raise ConfigError(
            f"--arm {name}: an arm's name holds lower-case letters, digits and _, and is not '{CHAMPION}'",
            hint="leave --share out to make a release the champion" if name == CHAMPION else "",
        )


def once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))
