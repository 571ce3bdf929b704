"""What the sections have in common to look at: verdicts, how a figure is known, tables that scroll."""

from __future__ import annotations

from collections.abc import Sequence

from stages.reporting.facts import Device, Estimate
from stages.reporting.markup import Html, element, foreign
from stages.reporting.words import number

VERDICTS = {"passed": "passes", "failed": "blocked", "broken": "not built"}


def scrolling(table: Html, label: str, class_: str = "") -> Html:
    """A table that scrolls in a region of its own, which the keyboard can reach."""
    return element("div", table, class_=f"scroll {class_}".strip(), role="region", tabindex="0", aria_label=label)


def verdict(device: Device) -> Html:
    """Its verdict as a word with a sign: no colour alone."""
    sign = {"passed": "\u2713", "failed": "\u2715", "broken": "\u2013"}[device.verdict]
    return element(
        "span",
        element("span", sign, aria_hidden="true", class_="sign"),
        VERDICTS[device.verdict],
        class_=f"verdict {device.verdict}",
    )


def known(predicted: bool) -> Html:
    """How a figure is known: a word with a sign."""
    word = "predicted" if predicted else "measured"
    return element("span", word, class_=f"known {word}")


def ends(each: Estimate, alike: bool = False) -> str | None:
    """Between what a prediction lies, in words that tell a judgement from an interval; None where that is not told.
    alike: all beside it are judged, or none, and what stands above them says so."""
    if each.low is None or each.high is None:
        return None
    return f"{number(each.low, 2)}–{number(each.high, 2)}{', judged' if each.judged and not alike else ''}"


def are_alike(found: Sequence[Estimate]) -> bool:
    """Say whether all that have ends are judged, or none."""
    return len({each.judged for each in found if each.low is not None}) < 2


def intervals(found: Sequence[Estimate]) -> str:
    """What the ends of such predictions are: intervals, judged ranges, or some of both; "" where none has ends."""
    judged = {each.judged for each in found if each.low is not None}
    words = {(False,): "90 % interval", (True,): "judged range", (False, True): "90 % interval, or a judged range"}
    return words.get(tuple(sorted(judged)), "")


def folded_text(words: str) -> Html:
    """The first line of a text; what follows it is folded."""
    first, _, rest = words.partition("\n")
    if not rest.strip():
        return element("div", foreign(first))
    return element("details", element("summary", foreign(first)), element("pre", foreign(rest)))
