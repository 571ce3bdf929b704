"""Resident memory of this process, and whether it grows. Linux tells it in /proc; elsewhere nothing is known."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BOUND = 0.01  # growth over all samples, as a share of what there was at their beginning
LEAST = 10  # samples of which anything can be said
KIB = 2**10


@dataclass(frozen=True)
class Growth:
    """share: how much more there is at the end than at the beginning, relative to that: the larger of what the slope
    says (Theil 1950, Sen 1968: the median of all pairs' slopes), and the last tenth's median against the first's.
    kib: what the slope says of each generation."""

    share: float
    kib: float

    @property
    def passed(self) -> bool:
        return self.share <= BOUND


def growth(samples: Sequence[int], every: int) -> Growth | None:
    """samples: bytes, one of each `every` generations. None where there are too few."""
    if len(samples) < LEAST:
        return None
    values = np.asarray(samples, np.float64)
    first, second = np.triu_indices(len(values), 1)
    slope = float(np.median((values[second] - values[first]) / (second - first)))
    tenth = max(len(values) // 10, 3)
    start, end = float(np.median(values[:tenth])), float(np.median(values[-tenth:]))
    share = max(slope * (len(values) - 1), end - start) / start
    return Growth(share, slope / every / KIB)


def settle() -> None:
    """Give back all that can be: garbage, and the allocator's free pages."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident() -> int | None:
    """Bytes that are resident now: of smaps_rollup, since VmRSS lags behind by some pages a thread."""
    return field("/proc/self/smaps_rollup", "Rss:") or field("/proc/self/status", "VmRSS:")


def allocated() -> int | None:
    """Bytes that are resident and of no file. Which pages of the libraries and of mapped weights are resident is the
    system's own matter: it takes them away and brings them back, half a megabyte of a runtime's code at a time."""
    return field("/proc/self/smaps_rollup", "Anonymous:")


def peak() -> int | None:
    """Bytes that were resident at most since the process began."""
    return field("/proc/self/status", "VmHWM:")


def field(path: str, name: str) -> int | None:
    """A field in kB of a file of /proc, in bytes; None where there is none."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * KIB
    return None
