"""What time it is, for whoever judges whether metadata has expired, on a machine whose clock may be wrong.

A timestamp says when it was signed. The newest one that was ever accepted is a lower bound of the time: so a clock that
was set back cannot make expired metadata valid again. Nothing bounds a clock from above: far ahead, all looks expired,
until it is right again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from stages.release.updates.expiry import ISSUED, text


def utc_now() -> datetime:
    return datetime.now(UTC)


def judged(now: datetime, bound: datetime | None) -> tuple[datetime, str]:
    """Return the time by which expiry is judged, and what to say where that is not the machine's own."""
    if bound is None or now >= bound:
        return now, ""
    return bound, (
        f"this machine's clock says {text(now)}, but the repository was signed at {text(bound)}: "
        "the clock is behind, and expiry is judged by that later time"
    )


def issued(timestamp: Any) -> datetime | None:
    """Return when timestamp metadata (tuf's Timestamp) was signed; None where it does not say, or says it oddly."""
    value = timestamp.unrecognized_fields.get(ISSUED)
    moment = parsed(value)
    return moment if moment is not None and moment <= timestamp.expires else None


def parsed(value: Any) -> datetime | None:
    """Return an ISO time in UTC; None for what is none."""
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
