"""`tapeout report` for this project's pipelines: the page on which a release engineer sees what ships, and signs.

One file: style and script are in it, nothing is fetched, and its content security policy forbids it. The script only
sorts, filters and folds; without it all is there. report-data holds the key figures for machines.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.report import Reported
from stages.reporting.accuracy import accuracy
from stages.reporting.changes import changes
from stages.reporting.charts import hatches
from stages.reporting.devices import sheets
from stages.reporting.environment import environment
from stages.reporting.facts import Facts
from stages.reporting.figures import headline, key_figures, report_data
from stages.reporting.flips import flips
from stages.reporting.frontier import frontier
from stages.reporting.gates import blocking
from stages.reporting.graph import graph
from stages.reporting.layers import layers
from stages.reporting.markup import Html, element, foreign
from stages.reporting.matrix import matrix
from stages.reporting.parts import known
from stages.reporting.risks import risks
from stages.reporting.said import said
from stages.reporting.speed import speed
from stages.reporting.words import seconds, shortened

Section = tuple[str, str, str, Callable[[Facts], Html | None]]
SECTIONS: tuple[Section, ...] = (  # (id, in the contents, title, what makes it)
    ("gates", "Gates", "What blocks", blocking),
    ("devices", "Devices", "Devices", matrix),
    ("accuracy", "Accuracy", "Accuracy", accuracy),
    ("frontier", "Size", "Accuracy against size", frontier),
    ("speed", "Speed", "Speed, memory, budgets", speed),
    ("layers", "Layers", "Bits and error by layer", layers),
    ("changes", "Changes", "Since the last build", changes),
    ("flips", "Flips", "Answers that flipped", flips),
    ("risks", "Risks", "Neural Engine and other risks", risks),
    ("said", "Stages", "What stages say", said),
    ("plan", "Plan", "The plan", graph),
    ("sheets", "Sheets", "Device sheets", sheets),
    ("environment", "Environment", "Environment and digests", environment),
)


def page(build: Reported) -> str:
    """The page of a build, whole."""
    facts = Facts(build)
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    title = f"{headline(facts)} · Tapeout"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(style)),
    )
    made = [(section, inside) for section in SECTIONS if (inside := section[3](facts)) is not None]
    sections = [
        element("section", element("h2", name, id=f"{key}-title"), inside, id=key, aria_labelledby=f"{key}-title")
        for (key, _, name, _), inside in made
    ]
    body = element(
        "body",
        element("a", "Skip to the devices", href="#devices", class_="skip"),
        hatches(),
        _masthead(facts),
        element(
            "div",
            _contents([section for section, _ in made]),
            element("main", _controls(facts), sections, id="main"),
            class_="columns-page",
        ),
        element("footer", element("p", "Made by tapeout report. What is predicted was not measured on a device.")),
        element("script", _json(report_data(facts)), type="application/json", id="report-data"),
        element("script", Html(script)),
    )
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def _masthead(facts: Facts) -> Html:
    build = facts.build.build
    said = [
        f"Build {build.number}" if build else "Build",
        build.name if build and build.name else None,
        build.when if build else None,
        seconds(facts.summary["seconds"]),
    ]
    overrides = shortened(build.overrides) if build else ""
    state = "passed" if facts.passed else "failed"
    return element(
        "header",
        element("p", element("b", "Tapeout"), " ", foreign(" · ".join(filter(None, said))), class_="eyebrow"),
        element("h1", headline(facts), class_=state),
        element("p", element("code", foreign(overrides)), class_="overrides") if overrides else None,
        key_figures(facts),
        element(
            "p",
            known(False),
            " on this machine, from the shipped files. ",
            known(True),
            " for the device, not run there: with a 90 % interval from errors on devices that were held out, or, where "
            "it says judged, with a range that is a judgement.",
            class_="legend",
        ),
        class_="masthead",
    )


def _contents(shown: Sequence[Section]) -> Html:
    links = [element("li", element("a", name, href=f"#{key}")) for key, name, _, _ in shown]
    return element("nav", element("ol", links), aria_label="Contents")


def _controls(facts: Facts) -> Html:
    """What the script brings to life; hidden without it."""
    runtimes = list(dict.fromkeys(device.runtime for device in facts.devices if device.runtime))
    options = [element("option", "all devices", value="")]
    options += [element("option", "blocked only", value="blocked")]
    options += [element("option", f"{runtime} only", value=f"runtime:{runtime}") for runtime in runtimes]
    return element(
        "form",
        element(
            "label",
            "Devices ",
            element("input", type="search", id="filter", placeholder="name or chip", autocomplete="off"),
        ),
        element("label", "Show ", element("select", options, id="show")),
        element("button", "Unfold all", type="button", id="unfold", aria_pressed="false"),
        element("output", "", id="shown", aria_live="polite"),
        class_="controls",
        hidden=True,
        role="search",
        aria_label="Filter devices",
    )


def _policy(style: str, script: str) -> str:
    """Nothing from anywhere but this file: its own style and script by their hashes, images that it holds."""
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def _json(value: dict[str, Any]) -> Html:
    """JSON that ends no script element, whatever is in it."""
    said = json.dumps(value, ensure_ascii=True, allow_nan=False, sort_keys=True)
    return Html(said.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
