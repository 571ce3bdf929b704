"""An entry of the release history: who did what, when, and what the channels are after it.

A promotion says what each channel that it touched *is* now, not what was done to it: reading the history needs none of
the rules by which it was decided, and stays right when they change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.errors import VerificationError
from stages.release.bundles.folder import printable
from stages.release.manifest import WORD, object_of

ENTRY_VERSION = 1
PAYLOAD_TYPE = "application/vnd.tapeout.release+json"
FIRST = "0" * 64  # what the first entry follows
ACTIONS = ("create", "promote", "rollback", "retire")
DIGEST = re.compile(r"[0-9a-f]{64}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
MEMBERS: Mapping[str, type | tuple[type, ...]] = {
    "entry_version": int,
    "sequence": int,
    "previous": str,
    "time": str,
    "who": dict,
    "action": str,
    "name": str,
    "version": str,
    "devices": list,
    "channel": (str, type(None)),
    "releases": dict,
    "set": dict,
    "reason": str,
}


@dataclass(frozen=True)
class Entry:
    """sequence: from 1. previous: the sha256 of the line before. time: UTC. who: {"keyid", "name"}.

    name: of the model. version: that was created, promoted or retired; of a rollback, what it ended. channel: None for
    create and retire. releases: {device: {"bundle", "archive"}} by sha256, of what was created; {"dirty": true} beside
    them where the sources were not committed. set: {channel: {device: {"champion", "arms", "salt", "former"}}}, what
    these are from now on. digest: of the entry's own line, once it has one.
    """

    sequence: int
    previous: str
    time: str
    who: Mapping[str, str]
    action: str
    name: str
    version: str
    devices: tuple[str, ...]
    channel: str | None = None
    releases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    set: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    reason: str = ""
    digest: str = ""

    @property
    def head(self) -> str:
        """How the history is named that ends here: SEQUENCE:SHA256."""
        return f"{self.sequence}:{self.digest}"

    def to_json(self) -> dict[str, Any]:
        value = {"entry_version": ENTRY_VERSION, **asdict(self), "devices": list(self.devices)}
        return {name: value[name] for name in MEMBERS}

    def payload(self) -> bytes:
        """Return what is signed; equal entries give equal bytes."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse(payload: bytes, where: str) -> Entry:
    """Return the entry in a signed payload. where: names it in messages. Raises VerificationError."""
    value = object_of(payload, where)
    version = value.get("entry_version")
    if version != ENTRY_VERSION:
        raise VerificationError(
            f"{where}: an entry of version {version!r}; this Tapeout reads version {ENTRY_VERSION}",
            hint="use the version of Tapeout that wrote it, or a newer one",
        )
    if strange := set(MEMBERS).symmetric_difference(value):
        raise bad(where, f"its members are not those of an entry: {', '.join(sorted(strange))}")
    for name, kind in MEMBERS.items():
        if not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise bad(where, f"{name} is {value[name]!r}")
    if value["action"] not in ACTIONS:
        raise bad(where, f"its action is '{value['action']}', none of {', '.join(ACTIONS)}")
    if not DIGEST.fullmatch(value["previous"]) or not TIME.fullmatch(value["time"]):
        raise bad(where, "'previous' must be a sha256, and 'time' a time in UTC")
    if not all(isinstance(value["who"].get(each), str) for each in ("keyid", "name")):
        raise bad(where, f"who is {value['who']!r}")
    check_words(value, where)
    if not all(is_release(each) for each in value["releases"].values()):
        raise bad(where, "a release of it has no sha256 of its bundle and archive")
    del value["entry_version"]
    return Entry(**{**value, "devices": tuple(value["devices"])})


def check_words(value: Mapping[str, Any], where: str) -> None:
    """Raise VerificationError unless whatever becomes part of a path is a word, as in a manifest."""
    if not value["devices"]:
        raise bad(where, "devices is [], expected one at least")
    held = {
        "name": [value["name"]],
        "version": [value["version"]],
        "devices": value["devices"],
        "channel": [] if value["channel"] is None else [value["channel"]],
        "releases": value["releases"],
        "set": [
            *value["set"],
            *(device for each in value["set"].values() if isinstance(each, dict) for device in each),
        ],
    }
    for member, words in held.items():
        for word in words:
            if not is_word(word):
                raise bad(where, f"{member} holds {word!r}, expected letters, digits, and . _ + - after the first")


def is_release(value: Any) -> bool:
    return isinstance(value, dict) and all(is_digest(value.get(each)) for each in ("bundle", "archive"))


def is_word(value: Any) -> bool:
    """Say whether this may be a device, a name or a version: they become parts of paths."""
    return isinstance(value, str) and WORD.fullmatch(value) is not None


def is_digest(value: Any) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def bad(where: str, what: str) -> VerificationError:
    """Return the error. what: may hold anybody's text."""
    return VerificationError(
        f"{where}: {printable(what)}",
        hint="whoever has the key has signed it so; ask them, and do not release before you know",
    )
