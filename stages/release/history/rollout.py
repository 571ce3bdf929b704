"""Which installation gets which arm: a stable hash of an anonymous id, in 10,000 buckets.

The bucket of an installation is, exactly (clients in any language must agree):

    digest = sha256(utf8(salt + ":" + installation))
    bucket = floor(big-endian unsigned integer of digest[0:8] * 10000 / 2**64)

An arm holds ranges [low, high) of buckets; who is in none of them gets the champion. One bucket is 0.01 %. Ranges stand
in the order in which they were taken: an arm that grows keeps its members and takes the lowest free buckets, one that
shrinks gives back those that it took last. So nobody changes arms but those by whom it grows or shrinks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.errors import ConfigError

BUCKETS = 10_000
PER_PERCENT = BUCKETS // 100
Ranges = tuple[tuple[int, int], ...]


def bucket(installation: str, salt: str) -> int:
    """Return the bucket of an installation, 0 to 9,999. Both are text; how is said above."""
    digest = hashlib.sha256(f"{salt}:{installation}".encode()).digest()
    return int.from_bytes(digest[:8], "big") * BUCKETS >> 64


def arm_of(document: Mapping[str, Any], installation: str) -> dict[str, Any] | None:
    """Return the arm of a channel's document that the installation is in; None: it gets the champion."""
    place = bucket(installation, document["salt"])
    for arm in document["arms"]:
        if any(low <= place < high for low, high in arm["ranges"]):
            return dict(arm)
    return None


def share_of(ranges: Iterable[Sequence[int]]) -> float:
    """Return the share of installations in the ranges, in percent."""
    return size(ranges) / PER_PERCENT


def size(ranges: Iterable[Sequence[int]]) -> int:
    """Return how many buckets lie in ranges that do not overlap."""
    return sum(high - low for low, high in ranges)


def buckets_of(share: float) -> int:
    """Return how many buckets a share in percent is. Raises ConfigError unless it is 0 to 100, with two decimals."""
    if not (math.isfinite(share) and 0 <= share <= 100):
        raise ConfigError(f"a share of {share:g} %", hint="it must lie between 0 and 100")
    wanted = round(share * PER_PERCENT)
    if abs(wanted - share * PER_PERCENT) > 1e-6:
        raise ConfigError(
            f"a share of {share!r} %: the smallest step is 0.01", hint=f"the nearest share is {wanted / PER_PERCENT:g}"
        )
    return wanted


def resized(ranges: Iterable[Sequence[int]], taken: Iterable[Iterable[Sequence[int]]], share: float) -> Ranges:
    """Return the ranges of an arm whose share is to be `share` percent.

    ranges: what it has, in the order in which it took them. taken: the ranges of the other arms. Raises ConfigError
    where the shares would come to more than 100 %.
    """
    kept = [(int(low), int(high)) for low, high in ranges]
    others = [(int(low), int(high)) for each in taken for low, high in each]
    wanted, rest = buckets_of(share), BUCKETS - size(others)
    if wanted > rest:
        raise ConfigError(
            f"a share of {share:g} %: the other arms have {share_of(others):g} %",
            hint=f"at most {rest / PER_PERCENT:g} % are left; lower another arm first, or end it with --share 0",
        )
    return shrunk(kept, wanted) if wanted <= size(kept) else grown(kept, others, wanted)


def shrunk(kept: list[tuple[int, int]], wanted: int) -> Ranges:
    """Give back the buckets that were taken last, until `wanted` are left."""
    left: list[tuple[int, int]] = []
    for low, high in kept:
        high = min(high, low + wanted - size(left))
        if high > low:
            left.append((low, high))
    return tuple(left)


def grown(kept: list[tuple[int, int]], others: list[tuple[int, int]], wanted: int) -> Ranges:
    """Take the lowest free buckets, until there are `wanted`."""
    found = list(kept)
    position = 0
    for low, high in sorted([*kept, *others, (BUCKETS, BUCKETS)]):
        missing = wanted - size(found)
        if position < low and missing:
            take(found, position, min(low, position + missing))
        position = max(position, high)
    return tuple(found)


def take(found: list[tuple[int, int]], low: int, high: int) -> None:
    """Add a range at the end, as part of the last one where it goes on from there."""
    if found and found[-1][1] == low:
        found[-1] = (found[-1][0], high)
    else:
        found.append((low, high))
