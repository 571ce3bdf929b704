"""Promotion: a release becomes a channel's champion, or an arm that some installations get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipelines.errors import ConfigError, ReleaseError
from stages.release.history.decision import (
    Changes,
    Decision,
    check_arm,
    check_channel,
    releases_of,
    salt_for,
)
from stages.release.history.rollout import buckets_of, resized, share_of
from stages.release.history.state import CHAMPION, FORMER, Arm, Channel, Released, State

CHALLENGER = "challenger"


def promotion(
    state: State,
    version: str,
    channel: str,
    devices: Sequence[str],
    following: tuple[int, str],
    *,
    share: float | None = None,
    arm: str | None = None,
    new_channel: bool = False,
) -> Decision:
    """Decide what promoting a version comes to; all devices or none.

    devices: none for all that it was released for. share: in percent; None makes it the champion, 0 ends the arm.
    following: sequence and `previous` of the entry that will record it. Raises ConfigError for names that do not exist,
    ReleaseError for what contradicts the state.
    """
    check_channel(state, channel, new_channel)
    if arm is not None:
        check_arm(arm)
        if share is None:
            raise ConfigError(f"--arm {arm}: an arm needs its share", hint=f"--share 10 --arm {arm}: 10 %")
    releases = releases_of(state, version, devices)
    if gone := [release.device for release in releases if release.retired]:
        raise ReleaseError(
            f"release {version} was retired for {', '.join(gone)}", hint="release the next version instead"
        )
    changes = Changes()
    for release in releases:
        now = state.channel(channel, release.device)
        if share is None:
            crown(changes, now, release, following)
        else:
            resize(changes, now, release, arm or CHALLENGER, share, following)
    fresh = channel not in state.channel_names() and changes.channels
    return Decision(
        "promote",
        releases[0].name,
        version,
        tuple(each.device for each in changes.channels) or tuple(each.device for each in releases),
        (*([f"new channel {channel}"] if fresh else []), *changes.lines),
        channel,
        tuple(changes.channels),
        bool(changes.channels),
    )


def crown(changes: Changes, now: Channel, release: Released, following: tuple[int, str]) -> None:
    """Make a release the champion; arms end."""
    before = now.champion
    ended = f"; {names(now)} ended" if now.arms else ""
    if before and before.version == release.version:
        if not now.arms:
            changes.unchanged(now, f"{release.version} is the champion already")
            return
        changes.add(replace(now, arms=()), f"{release.version} stays the champion{ended}")
        return
    champion = Arm(CHAMPION, release.version, release.bundle)
    former = (*now.former, *((before.version,) if before else ()))[-FORMER:]
    salt = now.salt or salt_for(now.channel, now.device, following)
    was = f", after {before.version}" if before else ""
    changes.add(
        replace(now, champion=champion, arms=(), former=former, salt=salt),
        f"{release.version} is the champion{was}{ended}",
    )


def resize(
    changes: Changes, now: Channel, release: Released, name: str, share: float, following: tuple[int, str]
) -> None:
    """Begin an arm, or give it another share; 0 % ends it."""
    old = now.arm(name)
    wanted = buckets_of(share)
    if now.champion is None:
        raise ReleaseError(
            f"channel {now.channel} has no champion for {now.device}, so an arm has nothing to be compared with",
            hint="promote a release without --share first",
        )
    if old and old.version != release.version:
        raise ReleaseError(
            f"{now.channel} {now.device}: arm {name} is {old.version}, not {release.version}",
            hint=f"end it first (promote {old.version} --share 0 --arm {name}), or name another: --arm NAME",
        )
    if not old and not wanted:
        raise ReleaseError(
            f"{now.channel} {now.device}: there is no arm {name} to end",
            hint=f"arms: {names(now) or 'none'}",
        )
    others = [each for each in now.arms if each.name != name]
    ranges = resized(old.ranges if old else (), [each.ranges for each in others], share)
    if old and ranges == old.ranges:
        changes.unchanged(now, f"{name} {release.version} has {share:g} % already")
        return
    arm = Arm(name, release.version, release.bundle, ranges)
    # who begins where no arm was draws new buckets, so that not the same installations are always first
    salt = now.salt if now.arms else salt_for(now.channel, now.device, following)
    if not wanted:
        arms, said = others, f"{name} {release.version} ended"
    elif old:
        arms = [arm if each.name == name else each for each in now.arms]
        said = f"{name} {release.version} has {share_of(ranges):g} %, after {old.share:g} %"
    else:
        arms, said = [*now.arms, arm], f"{name} {release.version} has {share_of(ranges):g} %"
    if wanted and release.version == now.champion.version:
        said += ", the same release as the champion (an A/A test)"
    rest = 100 - sum(each.share for each in arms)
    changes.add(replace(now, arms=tuple(arms), salt=salt), f"{said}; champion {now.champion.version} {rest:g} %")


def names(channel: Channel) -> str:
    return ", ".join(f"{arm.name} ({arm.version}, {arm.share:g} %)" for arm in channel.arms)
