"""Going back: a rollback ends a channel's arms or brings its champion before back; a retirement revokes a release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.errors import ReleaseError
from stages.release.history.decision import Changes, Decision, channels_of, releases_of
from stages.release.history.promoting import names
from stages.release.history.state import CHAMPION, Arm, Channel, Released, State


def rollback(state: State, channel: str, devices: Sequence[str]) -> Decision:
    """Decide what a rollback comes to: where there are arms, all get the champion; else the champion before it is back.

    Where some of several devices have arms, those end, and the champions stay: one step at a time. Raises ConfigError,
    and ReleaseError where there is nothing to go back to.
    """
    chosen = channels_of(state, channel, devices)
    changes = Changes()
    tried = [now for now in chosen if now.arms]
    for now in tried:
        left = f"all have {now.champion.version}" if now.champion else "there is no champion"
        changes.add(replace(now, arms=()), f"{names(now)} ended; {left}")
    ended = tried[0].arms[0].version if tried else ""
    for now in [] if tried else chosen:
        before = gone_back(state, now)
        if before is None or now.champion is None or before.champion is None:
            raise ReleaseError(
                f"channel {channel} has nothing to go back to for {now.device}: no champion before "
                f"{now.champion.version if now.champion else 'this'} that is not retired",
                hint="promote a release instead, or name the devices that have one: --device",
            )
        ended = ended or now.champion.version
        changes.add(before, f"{before.champion.version} is the champion again, after {now.champion.version}")
    device = changes.channels[0].device
    return Decision(
        "rollback",
        state.releases[ended, device].name,
        ended,
        tuple(each.device for each in changes.channels),
        tuple(changes.lines),
        channel,
        tuple(changes.channels),
    )


def gone_back(state: State, now: Channel, without: str = "") -> Channel | None:
    """Return the channel with the champion before the present one, or None where none is left.

    without: a version that is about to be retired.
    """
    present = now.champion.version if now.champion else ""
    for position in range(len(now.former) - 1, -1, -1):
        version = now.former[position]
        release = state.releases[version, now.device]
        if not release.retired and version not in (present, without):
            return replace(now, champion=Arm(CHAMPION, version, release.bundle), former=now.former[:position])
    return None


def retirement(state: State, version: str, devices: Sequence[str], force: bool) -> Decision:
    """Decide what retiring a version comes to. Raises ConfigError; ReleaseError while it is served, unless `force`.

    With force, whoever has it gets what was before it: an arm ends, a champion makes room for the one before, or for
    none where there was none.
    """
    releases = releases_of(state, version, devices)
    going = {each.device: each for each in releases if not each.retired}
    changes = Changes()
    for now in state.channels.values():
        if now.device in going and any(arm.version == version for arm in now.serving):
            if not force:
                raise still_served(now, version)
            withdraw(changes, state, now, version)
    lines = [said(each) for each in releases]
    return Decision(
        "retire",
        releases[0].name,
        version,
        tuple(going) or tuple(each.device for each in releases),
        (*lines, *changes.lines),
        None,
        tuple(changes.channels),
        bool(going),
    )


def withdraw(changes: Changes, state: State, now: Channel, version: str) -> None:
    """Take a version out of a channel."""
    after = replace(now, arms=tuple(arm for arm in now.arms if arm.version != version))
    words = [f"{arm.name} ended" for arm in now.arms if arm.version == version]
    if now.champion and now.champion.version == version:
        back = gone_back(state, after, version)
        after = back or replace(after, champion=None, arms=(), former=())
        words.append(f"{after.champion.version} is the champion again" if after.champion else "no champion is left")
    changes.add(after, ", ".join(words))


def still_served(now: Channel, version: str) -> ReleaseError:
    served = ", ".join(arm.name for arm in now.serving if arm.version == version)
    return ReleaseError(
        f"release {version} is still {served} of channel {now.channel} for {now.device}",
        hint="roll it back first ('tapeout release rollback'), or both at once: --force",
    )


def said(release: Released) -> str:
    return f"{release.title} {'was retired before' if release.retired else 'is retired, and revoked in all channels'}"
