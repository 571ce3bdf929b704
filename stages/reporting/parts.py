"""What the sections have in common to look at: verdicts, how a figure is known, tables that scroll."""

from __future__ import annotations

from stages.reporting.facts import Device
from stages.reporting.markup import Html, element, foreign

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


def folded_text(words: str) -> Html:
    """The first line of a text; what follows it is folded."""
    first, _, rest = words.partition("\n")
    if not rest.strip():
        return element("div", foreign(first))
    return element("details", element("summary", foreign(first)), element("pre", foreign(rest)))
