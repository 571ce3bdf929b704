"""The page of a build of a pipeline that has none of its own: devices, gates, figures and nodes."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.figures import inline
from pipelines.gates import describe, is_finite
from pipelines.numbers import significant
from pipelines.project import Project
from pipelines.report import Reported
from pipelines.summary import judged
from pipelines.tables import mapping, mebibytes, number, percent, size_of, tasks_of

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}
th,td{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
pre{overflow-x:auto}img{max-width:100%}
th:first-child,td:first-child{text-align:left}.bad{color:#b00020;font-weight:600}.good{color:#1a7f37}"""


def page(build: Reported) -> str:
    """Return the page."""
    return "\n".join(lines(build.project, build.summary)) + "\n"


def lines(project: Project, summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the page."""
    verdict = '<span class="good">passed</span>' if summary["passed"] else '<span class="bad">failed</span>'
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Tapeout</title><style>{STYLE}</style>'
    yield f"<h1>Build {verdict}</h1><p>{summary['seconds']:.1f} s</p>"
    for device in judged(summary["metrics"], summary["gates"]):
        metrics, gates = summary["metrics"].get(device, {}), [g for g in summary["gates"] if g["device"] == device]
        yield from device_section(device or "no device", metrics, gates, summary)
        yield from risks_section(risks_of(project, summary["bundles"].get(device)))
    for node in summary["nodes"]:
        yield from node_section(project, node)
    yield "<h2>Nodes</h2><table><tr><th>node<th>status<th>seconds<th>size<th>digest<th>why</tr>"
    for node in summary["nodes"]:
        kind = "bad" if node["status"] in ("failed", "skipped") else ""
        why = html.escape(node["error"] or node["why"])
        digest = (node["digest"] or "")[:12]
        yield (
            f'<tr><td>{node["name"]}<td class="{kind}">{node["status"]}<td>{node["seconds"]:.1f}'
            f"<td>{mebibytes(node['size'])}<td><code>{digest}</code><td>{why}</tr>"
        )
    yield "</table></html>"


def node_section(project: Project, node: dict[str, Any]) -> Iterator[str]:
    """Yield what a node's stage says of its result, and its figures."""
    figures = [each for each in node.get("figures", ()) if each["path"].endswith(".svg")]
    images = [(each["name"], project.root / each["path"]) for each in figures]
    images = [(name, path) for name, path in images if path.is_file()]  # it may have gone since
    if not node.get("summary") and not images:
        return
    yield f"<h2>{html.escape(node['name'])}</h2>"
    if node.get("summary"):
        yield f"<pre>{html.escape(node['summary'])}</pre>"
    yield from (f'<p><img src="{inline(path)}" alt="{html.escape(name)}"></p>' for name, path in images)


def device_section(
    device: str, metrics: dict[str, Any], gates: list[dict[str, Any]], summary: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a device's tasks, parity and gates."""
    bundle = summary["bundles"].get(device, "no bundle")
    size = f", {mebibytes(size_of(metrics))}" if size_of(metrics) else ""
    yield f"<h2>{html.escape(device)}</h2><p>{html.escape(bundle)}{size}</p>"
    yield "<table><tr><th>task<th>n<th>fp32<th>artifact<th>retention<th>interval</tr>"
    for name, task in tasks_of(metrics).items():
        interval = f"{percent(task.get('retention_low'))} to {percent(task.get('retention_high'))}"
        yield (
            f"<tr><td>{html.escape(name)}<td>{html.escape(str(task.get('n', '')))}<td>{percent(task.get('fp32'))}"
            f"<td>{percent(task.get('artifact'))}<td>{percent(task.get('retention'))}<td>{interval}</tr>"
        )
    yield "</table>"
    parity = ", ".join(f"{html.escape(name)} {number(value)}" for name, value in mapping(metrics, "parity").items())
    yield f"<p>Parity with the dequantized model: {parity or 'not measured'}</p>"
    if predicted := mapping(metrics, "predicted"):
        values = ", ".join(f"{html.escape(name)} {estimate(value)}" for name, value in predicted.items())
        yield f"<p>Predicted, not measured: {values}</p>"
    failed = [gate for gate in gates if not gate["passed"]]
    yield f"<p>{len(gates) - len(failed)} of {len(gates)} gates passed</p>"
    yield from (f'<p class="bad">{html.escape(describe(gate))}</p>' for gate in failed)


def estimate(value: Any) -> str:
    """Return a prediction: a number, or {"value", "low", "high"}."""
    if isinstance(value, Mapping) and is_finite(value.get("value")):
        known = all(is_finite(value.get(end)) for end in ("low", "high"))
        ends = f" ({significant(value['low'], 3)} to {significant(value['high'], 3)})" if known else ""
        return f"{significant(value['value'], 3)}{ends}"
    return significant(value, 3) if is_finite(value) else "-"


def risks_of(project: Project, bundle: str | None) -> list[dict[str, Any]]:
    """Return what a bundle's manifest lists under `risks`: {"risk", "count", "line", "source", ...} each."""
    if bundle is None:
        return []
    try:
        found = json.loads((project.root / bundle / "manifest.json").read_text(encoding="utf-8")).get("risks")
    except (OSError, ValueError, AttributeError):  # the bundle has gone since, or is another stage's
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def risks_section(risks: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a device's risks: what static rules found, and nothing has measured."""
    if not risks:
        return
    yield "<p>Risks: what static rules found in the files. No chip has run them.</p>"
    yield "<table><tr><th>risk<th>times<th>in<th>line<th>source</tr>"
    for each in risks:
        cells = [str(each.get(key) or "") for key in ("risk", "count", "function", "line", "source")]
        yield "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "</tr>"
    yield "</table>"
