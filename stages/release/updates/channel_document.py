"""What a channel says to a device: which bundle is its champion, which arms an experiment has, what is revoked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from pipelines.errors import VerificationError
from stages.release.history.rollout import arm_of
from stages.release.manifest import object_of

MAXIMUM = 4 << 20  # bytes
CHAMPION = "champion"
WORD = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._+-]*$", "not": {"pattern": "\\s"}, "maxLength": 128}
DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$", "maxLength": 64}
BUCKET = {"type": "integer", "minimum": 0, "maximum": 10_000}
SCHEMA = {
    "type": "object",
    "required": ["channel_version", "channel", "device", "sequence", "salt", "champion", "arms", "revoked"],
    "properties": {
        "channel_version": {"const": 1},
        "channel": WORD,
        "device": WORD,
        "sequence": {"type": "integer", "minimum": 0},
        "salt": {"type": "string", "maxLength": 1024},
        "champion": {
            "anyOf": [
                {
                    "type": "object",
                    "required": ["version", "bundle"],
                    "properties": {"version": WORD, "bundle": DIGEST},
                },
                {"type": "null"},
            ]
        },
        "arms": {
            "type": "array",
            "maxItems": 100,
            "items": {
                "type": "object",
                "required": ["name", "version", "bundle", "ranges"],
                "properties": {
                    "name": WORD,
                    "version": WORD,
                    "bundle": DIGEST,
                    "ranges": {
                        "type": "array",
                        "maxItems": 10_000,
                        "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": BUCKET},
                    },
                },
            },
        },
        "revoked": {"type": "array", "maxItems": 10_000, "items": DIGEST},
    },
}


@dataclass(frozen=True)
class Offer:
    """A bundle that a channel offers. arm: of the experiment, or "champion". bundle: its digest."""

    arm: str
    version: str
    bundle: str


@dataclass(frozen=True)
class ChannelDocument:
    value: dict[str, Any]

    @property
    def revoked(self) -> frozenset[str]:
        """The digests of bundles that must not be used."""
        return frozenset(self.value["revoked"])

    def offers(self, installation: str) -> list[Offer]:
        """Return what this installation may have, best first: its arm's bundle, then the champion."""
        arm, champion = arm_of(self.value, installation), self.value["champion"]
        found = [Offer(arm["name"], arm["version"], arm["bundle"])] if arm else []
        return found + ([Offer(CHAMPION, champion["version"], champion["bundle"])] if champion else [])


def parse_channel(data: bytes, channel: str, device: str, where: str) -> ChannelDocument:
    """Return what the bytes say. Raises VerificationError, also where they are another channel's or device's."""
    value = object_of(data, where)
    from jsonschema.exceptions import ValidationError, best_match

    try:
        wrong = best_match(validator().iter_errors(value))
    except (RecursionError, ValidationError, ValueError) as cause:
        raise VerificationError(f"{where}: cannot be held against its schema: {cause}") from cause
    if wrong is not None:
        place = ".".join(str(part) for part in wrong.absolute_path) or "the document"
        raise VerificationError(f"{where}: {place}: {wrong.message[:300]}", hint="this client may be too old for it")
    if (value["channel"], value["device"]) != (channel, device):
        raise VerificationError(
            f"{where}: it is for {value['device']} on {value['channel']}, expected {device} on {channel}"
        )
    return ChannelDocument(value)


@cache
def validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(SCHEMA)
