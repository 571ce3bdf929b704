"""What the build ran on and what came out, by digest: enough to make it again and to know it again."""

from __future__ import annotations

from pipelines.report import ReportedNode
from stages.reporting.facts import Facts
from stages.reporting.markup import Html, element, foreign
from stages.reporting.parts import scrolling
from stages.reporting.words import count


def environment(facts: Facts) -> Html:
    """The bundles with their digests, then the libraries."""
    return element("div", _bundles(facts), _libraries(facts))


def _bundles(facts: Facts) -> Html:
    rows = []
    for device in facts.devices:
        node = next(
            (n for n in facts.build.nodes if device.bundle and n.device == device.name and _is_bundle(facts, n)), None
        )
        rows.append(
            element(
                "tr",
                element("th", foreign(device.title), scope="row"),
                element("td", element("code", foreign(device.bundle)) if device.bundle else "no bundle"),
                element("td", element("code", (node.digest or "") if node else "–", class_="digest")),
            )
        )
    head = element("tr", [element("th", name, scope="col") for name in ("Device", "Bundle", "Digest (sha256)")])
    table = element("table", element("thead", head), element("tbody", rows), class_="small")
    return element("section", element("h3", "Bundles"), scrolling(table, "Bundles and digests"))


def _is_bundle(facts: Facts, node: ReportedNode) -> bool:
    """Whether it is where a device's way ends."""
    return not any(node.name in each.needs for each in facts.build.nodes)


def _libraries(facts: Facts) -> Html:
    """The libraries that the nodes' keys hold; a node that was cached may have been made with others."""
    found: dict[str, dict[str, list[str]]] = {}
    for node in facts.build.nodes:
        for name, version in (node.ingredients.get("libraries") or {}).items():
            found.setdefault(str(name), {}).setdefault(str(version), []).append(node.name)
    if not found:
        return element("p", "No library versions are recorded with this build.")
    items = []
    for name in sorted(found, key=lambda each: (each != "python", each)):
        versions = ", ".join(found[name])
        items.append(element("div", element("dt", foreign(name)), element("dd", foreign(versions))))
    return element(
        "section",
        element("h3", "Libraries", element("small", f"{count(len(found), 'version')} that the results depend on")),
        element("dl", items, class_="pairs versions"),
    )
