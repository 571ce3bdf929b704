"""What stages say of their results in words and pictures of their own, beside what the page draws itself."""

from __future__ import annotations

import base64

from pipelines.report import ReportedNode
from stages.reporting.facts import Facts
from stages.reporting.markup import Html, element, foreign

DRAWN = {"frontier.svg"}  # frontier.py draws them from the figures behind them


def said(facts: Facts) -> Html | None:
    """A part for each node that says something; None where none does."""
    parts = [each for node in facts.build.nodes if (each := _said(node)) is not None]
    return element("div", parts) if parts else None


def _said(node: ReportedNode) -> Html | None:
    names = [str(each["name"]) for each in node.figures]
    pictures = [each for name in names if (each := _picture(node, name)) is not None]
    if not node.summary and not pictures:
        return None
    return element(
        "section",
        element("h3", foreign(node.name)),
        element("pre", foreign(node.summary)) if node.summary else None,
        pictures,
    )


def _picture(node: ReportedNode, name: str) -> Html | None:
    """An SVG as an image, in which nothing runs."""
    if not name.endswith(".svg") or name in DRAWN or node.folder is None:
        return None
    try:
        data = (node.folder / name).read_bytes()
    except OSError:
        return None
    source = f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
    return element("p", element("img", src=source, alt=f"{name} of {node.name}", class_="drawn"))
