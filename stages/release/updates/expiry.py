"""How long each role's metadata lives before clients refuse it, and how much of that is left.

A short life bounds what somebody who holds back or replays old metadata can do; a long one is for keys that are kept
offline. The days that a repository was made with lie in its root metadata, signed with the rest of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, suggestion
from stages.release.updates.roles import CHANNELS, channel_of

if TYPE_CHECKING:
    from tuf.api.metadata import Root, Signed

DAYS = {"root": 365, "targets": 90, CHANNELS: 90, "snapshot": 7, "timestamp": 1}
FIELD = "x-tapeout-days"  # in root's signed part
ISSUED = "x-tapeout-issued"  # in timestamp's signed part: when it was signed
MOST = 3650  # days
WARN = 0.2  # of its life: less left than this is warned of
DUE = 0.5  # less left than this: whoever holds the key signs anew, if asked to publish or to refresh


def parse_days(words: Sequence[str]) -> dict[str, int]:
    """Return {role: days} of words such as "timestamp=2". Raises ConfigError."""
    days = {}
    for word in words:
        role, _, number = word.partition("=")
        if role not in DAYS:
            raise ConfigError(f"--expires {word}: there is no role '{role}'", hint=suggestion(role, DAYS, "roles"))
        if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= MOST:
            raise ConfigError(f"--expires {word}: expected {role}=DAYS, from 1 to {MOST}", hint=f"{role}={DAYS[role]}")
        days[role] = int(number)
    return days


def lifetime(role: str, root: Root) -> timedelta:
    """Return how long the metadata of a role lives in this repository."""
    kept: Any = root.unrecognized_fields.get(FIELD)
    kind = CHANNELS if channel_of(role) else role
    days = kept.get(kind) if isinstance(kept, Mapping) else None
    return timedelta(days=days if isinstance(days, int) and 1 <= days <= MOST else DAYS[kind])


def seconds(moment: datetime | None = None) -> datetime:
    """Return a moment (by default this one) in UTC, in whole seconds, as metadata writes it."""
    return (moment or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)


def text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def left(role: str, signed: Signed, root: Root, now: datetime) -> float:
    """Return the share of a role's life that is left; 0 or less: clients refuse it."""
    return (signed.expires - now) / lifetime(role, root)
