"""What an experiment's files say, line by line, and the sums that a decision needs. Lines are forgotten once read.

    {"arm": "champion", "n": 1000, "successes": 870}                    counts; of several lines the sum
    {"arm": "challenger", "score": 0.83}                                one answer; 0 and 1 are right or wrong
    {"arm": "challenger", "score": 1, "installation": "7f3a"}           answers of one installation belong together

One file is of one kind. An installation's answers are not independent: all that counts is what installations do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import ConfigError, nearest

KINDS = {
    ("n", "successes"): "counts",
    ("score",): "scores",
    ("installation", "score"): "scores of installations",
}
KEYS = ("arm", "installation", "n", "score", "successes")
EXAMPLE = '{"arm": "champion", "n": 1000, "successes": 870}, or {"arm": "champion", "score": 0.83}'
MOST_ARMS = 16
LONGEST = 1 << 16  # bytes of a line
SHOWN = 60  # characters of what was found
LARGEST = 1 << 53  # of a count; a float still knows its neighbours


class Tally:
    """An arm's answers, as sums. n: answers; right: of those that are all 0 or 1."""

    def __init__(self) -> None:
        self.n = self.right = 0
        self.binary = True
        self._mean = self._squares = 0.0  # Welford's
        self.clusters: Clusters | None = None

    @property
    def units(self) -> int:
        """Independent ones: installations where they are told, else answers."""
        return self.clusters.count if self.clusters else self.n

    @property
    def mean(self) -> float:
        return self.right / self.n if self.binary and self.n else self._mean

    @property
    def variance(self) -> float:
        """Of the mean, as it is estimated; infinite where it cannot be: from one unit, or scores that are all equal.

        Of right and wrong, at least what independent answers with one more of each half would have: a hundred answers
        that are all right do not say that none will ever be wrong.
        """
        if self.units < 2:
            return math.inf
        found = self.clusters.variance(self.n) if self.clusters else self._squares / (self.n - 1) / self.n
        if self.binary:
            rate = (self.right + 0.5) / (self.n + 1)
            return max(found, rate * (1 - rate) / self.n)
        return found or math.inf

    def add_counts(self, n: int, successes: int) -> None:
        self.n, self.right = self.n + n, self.right + successes

    def add_score(self, score: float, installation: str | None) -> None:
        self.n += 1
        before = score - self._mean
        self._mean += before / self.n
        self._squares += before * (score - self._mean)
        if score in (0, 1):
            self.right += int(score)
        else:
            self.binary = False
        if installation is not None:
            self.clusters = self.clusters or Clusters()
            self.clusters.add(score, installation)


class Clusters:
    """Sums by installation, in memory that does not grow: an installation's hash says which of GROUPS groups it adds
    to. Groups are independent where installations are, so that their spread tells the mean's error."""

    GROUPS = 4096
    BITS = 1 << 23  # of the sketch that counts installations (linear counting; 0.03 % off at a million)

    def __init__(self) -> None:
        self._n, self._sum = np.zeros(self.GROUPS), np.zeros(self.GROUPS)
        self._seen = bytearray(self.BITS // 8)
        self._set = 0

    def add(self, score: float, installation: str) -> None:
        digest = blake2b(installation.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        bit, group = divmod(int.from_bytes(digest, "big"), self.GROUPS)
        self._n[group] += 1
        self._sum[group] += score
        place, mask = bit % self.BITS >> 3, 1 << (bit & 7)
        if not self._seen[place] & mask:
            self._seen[place] |= mask
            self._set += 1

    @property
    def count(self) -> int:
        """How many installations there are, nearly."""
        left = max(self.BITS - self._set, 1)
        return round(self.BITS * math.log(self.BITS / left))

    def variance(self, n: int) -> float:
        """Of the mean of n answers."""
        used = self._n > 0
        groups = int(used.sum())
        if groups < 2:
            return math.inf
        spread = self._sum[used] - self._sum.sum() / n * self._n[used]
        return float((spread**2).sum()) * groups / (groups - 1) / n**2


def read_outcomes(paths: Iterable[Path], known: Mapping[str, object] | None) -> dict[str, Tally]:
    """Return the arms' tallies. known: the arms that there are; None: whichever the files name.

    Raises ConfigError, with file and line, for what is no outcome, an unknown arm, and lines of different kinds.
    """
    arms: dict[str, Tally] = {}
    kind = first = ""
    for path in paths:
        for number, raw in lines_of(path):
            where = f"{path}, line {number}"
            value = object_of(raw, where)
            found = kind_of(value, where)
            kind, first = kind or found, first or where
            if found != kind:
                raise ConfigError(
                    f"{where}: found {found}, where {first} has {kind}", hint="one experiment has one kind of lines"
                )
            arm = arm_of(value["arm"], arms, known, where)
            if kind == "counts":
                arm.add_counts(*counts_of(value, where))
            else:
                arm.add_score(score_of(value["score"], where), installation_of(value, where))
    if not arms:
        raise ConfigError("there are no outcomes: all files are empty", hint=f"expected lines as {EXAMPLE}")
    return arms


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line) of all lines that are not blank."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LONGEST + 1):
                number += 1
                if len(raw) > LONGEST:
                    raise ConfigError(f"{path}, line {number}: more than {LONGEST} bytes", hint=f"expected {EXAMPLE}")
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw.strip():
                    yield number, raw
    except OSError as cause:
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(
            f"{path} cannot be read: {cause.strerror or cause}", hint=nearest(path.name, beside)
        ) from cause


def object_of(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode(), object_pairs_hook=once, parse_constant=refuse)
    except UnicodeDecodeError as cause:
        raise ConfigError(f"{where}: not UTF-8 at byte {cause.start + 1}", hint="save the file as UTF-8") from cause
    except (ValueError, RecursionError) as cause:
        raise ConfigError(f"{where}: not JSON: {str(cause)[:SHOWN]}", hint=f"expected {EXAMPLE}") from cause
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: found {shown(value)}, which is no object", hint=f"expected {EXAMPLE}")
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return value


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def kind_of(value: dict[str, Any], where: str) -> str:
    """Say what a line tells, by its keys."""
    unknown = next((key for key in value if key not in KEYS), None)
    if unknown is not None:
        hint = nearest(unknown, KEYS) or f"keys: {', '.join(KEYS)}"
        raise ConfigError(f"{where}: unknown key {shown(unknown)}", hint=hint)
    if "arm" not in value:
        raise ConfigError(f"{where}: there is no 'arm'", hint=f"expected {EXAMPLE}")
    kind = KINDS.get(tuple(sorted(value.keys() - {"arm"})))
    if kind is None:
        found = ", ".join(sorted(value.keys() - {"arm"})) or "nothing"
        raise ConfigError(
            f"{where}: found {found} beside the arm; expected n and successes, or a score", hint=f"as {EXAMPLE}"
        )
    return kind


def arm_of(name: Any, arms: dict[str, Tally], known: Mapping[str, object] | None, where: str) -> Tally:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: 'arm' is {shown(name)}; expected its name")
    if known is not None and name not in known:
        hint = " ".join(filter(None, [nearest(name, known), f"arms: {', '.join(known)}; --shares names others"]))
        raise ConfigError(f"{where}: unknown arm {shown(name)}", hint=hint)
    if name not in arms and len(arms) == MOST_ARMS:
        raise ConfigError(f"{where}: {shown(name)} is arm {MOST_ARMS + 1}", hint="expected the arms of one experiment")
    return arms.setdefault(name, Tally())


def counts_of(value: dict[str, Any], where: str) -> tuple[int, int]:
    for key in ("n", "successes"):
        count = value[key]
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= LARGEST:
            raise ConfigError(f"{where}: {key} is {shown(count)}; expected a whole number from 0")
    if value["successes"] > value["n"]:
        raise ConfigError(f"{where}: {value['successes']} successes of {value['n']}; expected at most as many")
    return value["n"], value["successes"]


def score_of(score: Any, where: str) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float):
        hint = f"write {int(score)}" if isinstance(score, bool) else ""
        raise ConfigError(f"{where}: score is {shown(score)}; expected a number", hint=hint)
    if abs(score) > 1e150:  # 1e999 is read as infinite, and squares must be finite
        raise ConfigError(f"{where}: score is {shown(score)}; expected a number of a sensible size")
    return float(score)


def installation_of(value: dict[str, Any], where: str) -> str | None:
    found = value.get("installation", "")
    if "installation" in value and (isinstance(found, bool) or not isinstance(found, str | int) or found == ""):
        raise ConfigError(f"{where}: installation is {shown(found)}; expected its id, text or a whole number")
    return str(found) if "installation" in value else None


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
