"""`tapeout ab`: what an experiment between two releases says so far."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.commands import anywhere
from pipelines.errors import ConfigError, suggestion
from pipelines.project import Project
from stages.release.commands.parser import Parser
from stages.release.history.rollout import BUCKETS, size

if TYPE_CHECKING:
    from stages.release.experiments.experiment import Rules, Verdict
    from stages.release.experiments.outcomes import Tally

CHAMPION = "champion"
DESCRIPTION = (
    "Reads outcomes of two arms, JSON lines of counts or scores, and says what they decide: promote, where the "
    "challenger is surely not worse by as much as --margin; rollback, where it is surely worse; check, where the arms' "
    "sizes are not as shared out; else continue. Lines may be added and looked at as often as you like. Exit status 0 "
    "whatever the decision, unless one is required."
)
DECISIONS = ("promote", "rollback", "continue", "check")
WORDS = {"promote": "PROMOTE", "rollback": "ROLL BACK", "continue": "CONTINUE", "check": "CHECK"}


@anywhere
def ab(arguments: list[str], project: Project) -> int:
    """say whether an experiment's outcomes promote the challenger: a test that may be looked at any time"""
    options = parse(arguments)
    from stages.release.experiments.experiment import judge
    from stages.release.experiments.outcomes import read_outcomes

    shares = shares_of(options)
    named = [name for name in (options.champion, options.challenger) if name]
    known = dict.fromkeys([*named, *(shares or ())]) if len(named) == 2 or shares else None
    arms = read_outcomes(map(Path, options.files), known)
    rules = rules_of(options, arms, shares)
    verdict = judge(arms, rules)
    if options.json:
        print(json.dumps({"ab_version": 1, **verdict.to_json(), "rules": vars(rules)}, indent=2, sort_keys=True))
    else:
        print("\n".join(lines(verdict, rules)))
    return 1 if options.require and verdict.decision != options.require else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("ab", DESCRIPTION)
    parser.add_argument(
        "files",
        metavar="FILE.jsonl",
        nargs="+",
        help='{"arm", "n", "successes"}, or {"arm", "score"}, also with "installation"',
    )
    parser.add_argument("--champion", metavar="NAME", help="the arm that is there; by default 'champion'")
    parser.add_argument("--challenger", metavar="NAME", help="the new one; by default the other arm")
    parser.add_argument(
        "--margin", type=float, default=0.01, metavar="D", help="how much worse is fine, in the score's units; 0.01"
    )
    parser.add_argument("--alpha", type=float, default=0.05, metavar="P", help="chance of an error, ever; 0.05")
    parser.add_argument("--minimum", type=int, default=100, metavar="N", help="answers or installations an arm; 100")
    parser.add_argument("--shares", metavar="ARM=PERCENT,...", help="of each arm, to test that they are so")
    parser.add_argument("--document", type=Path, metavar="FILE", help="a channel's document, which says the shares")
    parser.add_argument("--higher-is-worse", action="store_true", help="for errors, latencies")
    parser.add_argument("--require", choices=DECISIONS, metavar="DECISION", help="exit status 1 unless this is it")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_intermixed_args(arguments)  # files may stand before and behind an option
    if not 0 < options.alpha < 1:
        raise ConfigError(f"tapeout ab: --alpha {options.alpha:g}: expected a probability, as 0.05")
    if not (math.isfinite(options.margin) and options.margin >= 0):
        raise ConfigError(f"tapeout ab: --margin {options.margin:g}: expected 0 or more")
    if options.minimum < 2:
        raise ConfigError(f"tapeout ab: --minimum {options.minimum}: expected 2 or more")
    if options.shares and options.document:
        raise ConfigError("tapeout ab: --shares and --document both say the shares", hint="leave one out")
    if options.champion and options.champion == options.challenger:
        raise ConfigError(f"tapeout ab: '{options.champion}' cannot be both arms")
    return options


def shares_of(options: argparse.Namespace) -> dict[str, float] | None:
    """Return {arm: share}, of any sum. Raises ConfigError."""
    if options.document:
        return shares_in(options.document)
    if not options.shares:
        return None
    shares: dict[str, float] = {}
    for part in options.shares.split(","):
        name, _, text = part.strip().partition("=")
        try:
            share = float(text.removesuffix("%"))
        except ValueError:
            share = math.nan
        if not name or name in shares or not 0 < share < math.inf:
            raise ConfigError(
                f"tapeout ab: --shares: '{part}'; expected each arm once, with a number above 0",
                hint="as champion=90,challenger=10",
            )
        shares[name] = share
    return shares


def shares_in(path: Path) -> dict[str, float]:
    """Return the shares that a channel's document gives: the champion has what no arm holds."""
    try:
        document = json.loads(path.read_bytes())
        shares = {arm["name"]: float(size(arm["ranges"])) for arm in document["arms"]}
    except OSError as cause:
        raise ConfigError(f"tapeout ab: {path} cannot be read: {cause.strerror or cause}") from cause
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise ConfigError(
            f"tapeout ab: {path} is no channel's document: {type(cause).__name__} {cause}",
            hint="expected channels/NAME/DEVICE.json of an update repository",
        ) from cause
    shares[CHAMPION] = BUCKETS - sum(shares.values())
    if min(shares.values()) <= 0:
        raise ConfigError(f"tapeout ab: {path}: an arm has no share", hint="there is nothing to compare")
    return shares


def rules_of(options: argparse.Namespace, arms: dict[str, Tally], shares: dict[str, float] | None) -> Rules:
    """Settle which arm is which. Raises ConfigError where that is open, or a share is not said."""
    from stages.release.experiments.experiment import Rules

    names = sorted(arms)
    champion = options.champion or (CHAMPION if CHAMPION in names and options.challenger != CHAMPION else None)
    challenger = options.challenger or only([name for name in names if name != champion] if champion else [])
    champion = champion or only([name for name in names if name != challenger] if challenger else [])
    if not champion or not challenger:
        raise ConfigError(
            f"tapeout ab: which arm is which is open; found {', '.join(names)}",
            hint="say --champion NAME and --challenger NAME; a comparison has two arms",
        )
    for name in (champion, challenger):
        if shares is not None and name not in shares:
            raise ConfigError(f"tapeout ab: no share is said for '{name}'", hint=suggestion(name, shares, "shares of"))
    return Rules(champion, challenger, options.margin, options.alpha, options.minimum, options.higher_is_worse, shares)


def only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def lines(verdict: Verdict, rules: Rules) -> Iterator[str]:
    """Yield what was found, for the terminal."""
    from stages.release.experiments.experiment import SHARE_ALPHA

    yield f"{WORDS[verdict.decision]}: {verdict.why}"
    width = max(map(len, verdict.arms))
    for name, arm in verdict.arms.items():
        of = f"{arm['n']:,} answers" + (f" of {arm['installations']:,} installations" if "installations" in arm else "")
        yield f"  {name:<{width}}  {number(arm['mean'])} over {of}"
    better = "above 0 is better" + (", turned round since higher is worse" if rules.higher_is_worse else "")
    ends = f"between {number(verdict.low)} and {number(verdict.high)}"
    yield f"  difference {number(verdict.difference)}, {ends}; {better}"
    yield f"  that holds at all times together with probability {1 - rules.alpha:g} ({verdict.method})"
    yield f"  promoted when the lower end is above {-rules.margin:g}, rolled back when the upper end is below 0"
    if verdict.balanced is not None:
        said = ", ".join(f"{name} {value:g}" for name, value in (rules.shares or {}).items())
        verdict_of = "as said" if verdict.balanced else "NOT as said"
        yield f"  shares {verdict_of} ({said}; tested at {SHARE_ALPHA:g})"


def number(value: Any) -> str:
    return "unknown" if value is None else f"{value:.4g}"
