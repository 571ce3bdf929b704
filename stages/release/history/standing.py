"""What `tapeout release status` and `history` say: for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from stages.release.bundles.folder import printable
from stages.release.history.entry import Entry
from stages.release.history.history import Log
from stages.release.history.rollout import share_of
from stages.release.history.state import Channel, State

NOTHING = "-"


def status_json(state: State, log: Log) -> dict[str, Any]:
    """Return what is released where. Shares in percent; torn in bytes."""
    return {
        "head": log.head or None,
        "entries": len(log.entries),
        "torn": log.torn,
        "unchecked": list(log.unchecked),
        "channels": [channel_json(channel) for channel in ordered(state)],
        "releases": [
            {
                "name": release.name,
                "version": release.version,
                "device": release.device,
                "bundle": release.bundle,
                "archive": release.archive,
                "sequence": release.sequence,
                "retired": release.retired,
                "dirty": release.dirty,
            }
            for release in state.releases.values()
        ],
    }


def channel_json(channel: Channel) -> dict[str, Any]:
    return {
        "channel": channel.channel,
        "device": channel.device,
        "champion": channel.champion.version if channel.champion else None,
        "arms": [{"name": arm.name, "version": arm.version, "share": arm.share} for arm in channel.arms],
        "former": list(channel.former),
        "salt": channel.salt,
        "sequence": channel.sequence,
    }


def status_lines(state: State, log: Log) -> Iterator[str]:
    """Yield what is released where, for the terminal."""
    rows = [
        [
            channel.device,
            channel.channel,
            channel.champion.version if channel.champion else NOTHING,
            ", ".join(f"{arm.name} {arm.version} {arm.share:g} %" for arm in channel.arms) or NOTHING,
            str(channel.sequence),
        ]
        for channel in ordered(state)
    ]
    yield from table(["device", "channel", "champion", "arms", "entry"], rows)
    for title, wanted in (("retired", True), ("released", False)):
        versions = [version for version in state.versions() if any(said(state, version, wanted))]
        for version in versions:
            yield f"{title:<10} {version} for {', '.join(said(state, version, wanted))}"
    count = len(log.entries)
    yield f"history    {count} {'entry' if count == 1 else 'entries'}{f', head {log.head}' if count else ''}"


def unchecked_words(log: Log) -> str:
    """Say which entries have a signature that nobody could check, or ""."""
    if not log.unchecked:
        return ""
    which = ", ".join(map(str, log.unchecked[:10])) + (", ..." if len(log.unchecked) > 10 else "")
    return (
        f"entries whose signature nobody could check: {len(log.unchecked)} ({which}): their key is trusted no more; "
        "later entries name their sha256. With its .pub in releases/keys/former they are checked"
    )


def said(state: State, version: str, retired: bool) -> list[str]:
    """Return the devices of a version's releases that are retired, or that are not."""
    found = (state.releases[version, device] for device in state.devices_of(version))
    return [f"{each.device}{' (dirty)' if each.dirty else ''}" for each in found if each.retired == retired]


def ordered(state: State) -> list[Channel]:
    return sorted(state.channels.values(), key=lambda channel: (channel.device, channel.channel))


def history_lines(entries: Sequence[Entry]) -> Iterator[str]:
    """Yield a line for each entry, the oldest first; times in UTC."""
    rows = [
        [
            str(entry.sequence),
            entry.time.replace("T", " ").removesuffix("Z"),
            entry.who["name"],
            entry.action,
            entry.version,
            entry.channel or NOTHING,
            ", ".join(entry.devices),
            "; ".join(filter(None, [outcome(entry), entry.reason])),
        ]
        for entry in entries
    ]
    yield from table(["entry", "time (UTC)", "who", "action", "version", "channel", "devices", "what"], rows)


def outcome(entry: Entry) -> str:
    """Say what an entry made of its channels: the same words are said once."""
    words = []
    for name, devices in entry.set.items():
        before = "" if name == entry.channel else f"{name}: "
        words += [f"{before}{served(value)}" for value in devices.values()]
    words += ["uncommitted sources" for release in entry.releases.values() if release.get("dirty")]
    return "; ".join(dict.fromkeys(words))


def served(value: Mapping[str, Any]) -> str:
    champion = value["champion"]["version"] if value["champion"] else "none"
    arms = (f"{arm['name']} {arm['version']} {share_of(arm['ranges']):g} %" for arm in value["arms"])
    return ", ".join([f"champion {champion}", *arms])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield rows in columns as wide as they must be; nothing where there are none. What a terminal would obey is
    escaped: a reason or a name may be anybody's."""
    lines = [list(map(printable, row)) for row in rows]
    if not lines:
        return
    widths = [max(len(line[column]) for line in [list(head), *lines]) for column in range(len(head))]
    for line in [head, *lines]:
        yield "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip()
