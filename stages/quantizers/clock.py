"""How much of a long piece of work is done, and how long the rest will take."""

import time
from collections.abc import Callable

_LEAST = 0.002  # share of the work that must be done before a guess is made
Report = Callable[[float, float, str], None]


class Clock:
    """Reports how much of `total` is done, and from what this run has done so far, how long the rest will take."""

    def __init__(self, report: Report):
        self._report, self.total, self._done = report, 0.0, 0.0
        self._started, self._own = time.monotonic(), 0.0

    def skip(self, amount: float) -> None:
        """An earlier run did it."""
        self._done += amount

    def add(self, amount: float, text: str) -> None:
        self._done, self._own = self._done + amount, self._own + amount
        if self._own > _LEAST * self.total:
            left = (time.monotonic() - self._started) * max(self.total - self._done, 0) / self._own
            text = f"{text}, {_spoken(left)} to go"
        self._report(self._done, self.total, text)


def _spoken(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
