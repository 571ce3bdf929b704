"""What an experiment's outcomes say: promote the challenger, roll it back, go on, or check how they came about.

With [low, high] the interval of the challenger's mean less the champion's (the other way where higher is worse), which
holds at all times together with probability 1 - alpha (sequential.py):

    check      units are not shared out as they should be: something sends, loses or counts them otherwise for one arm,
               and no comparison of arms can be believed
    promote    low is above -margin: if it is worse, then by less than the margin. Also where high is below 0: it is
               surely worse then, and by less than was said to be fine
    rollback   high is below 0, and low is not above -margin: it is surely worse
    continue   neither; or an arm has fewer than the minimum

The test of shares has its own error, SHARE_ALPHA.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.errors import ConfigError
from stages.release.experiments.outcomes import Tally
from stages.release.experiments.sequential import mean_radius, rate_difference, share_evidence

SHARE_ALPHA = 0.001  # an experiment is not to be called broken without cause
EXACT, ASYMPTOTIC = "Beta mixture, exact at any size", "normal mixture, asymptotic"


@dataclass(frozen=True)
class Rules:
    """champion, challenger: names of arms. margin: how much worse is fine, in the score's units. minimum: units of each
    arm below which nothing is decided. shares: {arm: its share of all units}; None: not to be checked."""

    champion: str
    challenger: str
    margin: float
    alpha: float
    minimum: int
    higher_is_worse: bool
    shares: dict[str, float] | None


@dataclass(frozen=True)
class Verdict:
    """decision: promote, rollback, continue or check. low, high: of the difference, in which more is better; None where
    an arm has nothing. method: of the interval. balanced: whether shares are as said; None where that was not asked."""

    decision: str
    why: str
    difference: float | None
    low: float | None
    high: float | None
    method: str
    balanced: bool | None
    arms: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(arms: dict[str, Tally], rules: Rules) -> Verdict:
    """Return what the outcomes say now. Raises ConfigError where an arm has no lines."""
    for name in (rules.champion, rules.challenger):
        if name not in arms:
            raise ConfigError(
                f"there are no outcomes of '{name}'; found {', '.join(sorted(arms)) or 'none'}",
                hint="a comparison needs both arms: --champion NAME and --challenger NAME say which",
            )
    champion, challenger = arms[rules.champion], arms[rules.challenger]
    balanced = evenly_shared(champion, challenger, rules)
    method, bounds = interval(champion, challenger, rules)
    difference = None
    if champion.n and challenger.n:
        difference = (challenger.mean - champion.mean) * (-1 if rules.higher_is_worse else 1)
    decision, why = decide(bounds, min(champion.units, challenger.units), balanced, rules)
    known = bounds if all(map(math.isfinite, bounds)) else (None, None)
    told = {name: described(arms[name]) for name in (rules.champion, rules.challenger)}
    return Verdict(decision, why, difference, *known, method, balanced, told)


def evenly_shared(champion: Tally, challenger: Tally, rules: Rules) -> bool | None:
    if rules.shares is None:
        return None
    share = rules.shares[rules.challenger] / (rules.shares[rules.champion] + rules.shares[rules.challenger])
    return bool(share_evidence((champion.units, challenger.units), share) <= math.log(1 / SHARE_ALPHA))


def interval(champion: Tally, challenger: Tally, rules: Rules) -> tuple[str, tuple[float, float]]:
    """Return the method and the difference's interval, in which more is better; infinite where nothing is known."""
    exact = all(arm.binary and arm.clusters is None for arm in (champion, challenger))
    if not champion.n or not challenger.n:
        return EXACT if exact else ASYMPTOTIC, (-math.inf, math.inf)
    if exact:
        low, high = rate_difference((champion.n, challenger.n), (champion.right, challenger.right), rules.alpha)
    else:
        variance = champion.variance + challenger.variance
        known = math.isfinite(variance)
        radius = mean_radius(variance, champion.units + challenger.units, rules.alpha) if known else math.inf
        low, high = (float(challenger.mean - champion.mean + side * radius) for side in (-1, 1))
    return EXACT if exact else ASYMPTOTIC, (-high, -low) if rules.higher_is_worse else (low, high)


def decide(bounds: tuple[float, float], units: int, balanced: bool | None, rules: Rules) -> tuple[str, str]:
    """Return the decision and why. units: of the smaller arm."""
    low, high = bounds
    if balanced is False:
        return "check", "the arms' sizes are not as they were shared out: find out why before any of this is believed"
    if units < rules.minimum:
        return "continue", f"an arm has {units} of at least {rules.minimum}"
    if low > -rules.margin:
        if high < 0:
            return "promote", "the challenger is surely worse, but by less than the margin"
        if low > 0:
            return "promote", "the challenger is better"
        return "promote", "the challenger is not worse by as much as the margin"
    if high < 0:
        return "rollback", "the challenger is worse"
    return "continue", "the difference is not known well enough yet"


def described(arm: Tally) -> dict[str, Any]:
    told = {"n": arm.n, "mean": arm.mean if arm.n else None}
    return {**told, "installations": arm.units} if arm.clusters else told
