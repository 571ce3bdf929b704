"""Which of two versions is older: the order by which an SDK refuses to go back.

Numbers between dots, missing ones 0; then what follows "-", as https://semver.org/#spec-item-11 has it: a candidate is
older than its release. What follows "+" says nothing, nor does a "v" in front.
"""

from __future__ import annotations

import re
from typing import Any

ASCENDING = (
    "0.0.1", "0.1.0-alpha", "0.1.0-alpha.1", "0.1.0-alpha.beta", "0.1.0-beta.2", "0.1.0-beta.11", "0.1.0-rc.1", "0.1.0",
    "0.1.1", "0.2.0", "0.10.0", "1.0.0-1", "1.0.0-a", "1.0.0-a-b", "1.0.0", "1.0.0.1", "1.0.1", "1.0.x", "2.0.0",
    "10.0.0",
    "2026.11.22", "2026.12.1", "20260101000000000000000000",
)  # fmt: skip
EQUAL = (
    ("1.0.0", "1.0.0+build.7"), ("1.0", "1.0.0"), ("1", "1.0.0"), ("01.0.0", "1.0.0"), ("v1.2", "1.2.0"),
    ("1.0.0-rc.1+2", "1.0.0-rc.1+10"), ("1.0.0+1-rc", "1.0.0"),
)  # fmt: skip


def compared(one: str, other: str) -> int:
    """Return -1, 0 or 1, as `one` is older than, as old as, or newer than `other`."""
    first, second = order(one), order(other)
    return (first > second) - (first < second)


def order(version: str) -> tuple[Any, ...]:
    """Return what sorts as versions do."""
    core, dash, early = version.partition("+")[0].partition("-")
    numbers = [part_order(part) for part in re.sub(r"^v(?=[0-9])", "", core).split(".")]
    while numbers and numbers[-1] == part_order("0"):
        numbers.pop()
    return numbers, not dash, [part_order(part) for part in early.split(".")]


def part_order(part: str) -> tuple[int, int, str]:
    """Numbers are below words."""
    return (0, int(part), "") if re.fullmatch("[0-9]+", part) else (1, 0, part)


def versions() -> dict[str, Any]:
    """Return versions from the oldest to the newest, and pairs of which neither is older."""
    return {"ascending": list(ASCENDING), "equal": [list(pair) for pair in EQUAL]}
