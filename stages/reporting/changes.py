"""What changed since the build before: which nodes were made anew, and why."""

from __future__ import annotations

from stages.reporting.facts import Facts
from stages.reporting.markup import Html, element, foreign
from stages.reporting.matrix import scrolling
from stages.reporting.words import count, seconds


def changes(facts: Facts) -> Html:
    """The nodes that were made anew."""
    before = facts.build.before
    if before is None:
        return element("p", "This is the first build here: there is none to compare it with.", class_="lead")
    made = [node for node in facts.build.nodes if node.status == "built"]
    parts = [element("p", f"Beside {before.title}: ", count(len(made), "node"), " made anew.", class_="lead")]
    if made:
        head = element(
            "tr",
            [
                element("th", name, scope="col", class_="number" if name == "Time" else None)
                for name in ("Node", "Why", "Time")
            ],
        )
        rows = [
            element(
                "tr",
                element("th", foreign(node.name), scope="row", class_="name"),
                element("td", foreign(node.why)),
                element("td", seconds(node.seconds), class_="number"),
            )
            for node in made
        ]
        table = element("table", element("thead", head), element("tbody", rows), class_="small")
        parts.append(scrolling(table, "Nodes that were made anew"))
    return element("div", parts)
