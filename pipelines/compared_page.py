"""What differs between two builds as one self-contained page: no script, nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import compared_words as words
from pipelines.compared_table import NOTES
from pipelines.files import write_file

STYLE = """:root{color-scheme:light dark;--paper:#fbfaf7;--ink:#17181a;--soft:#55585d;--rule:#d9d6ce;--faint:#edeae3;
--blue:#1f4e8c;--bad:#a3201a;--good:#1b6b3a;--focus:#0b57d0}
@media(prefers-color-scheme:dark){:root{--paper:#121315;--ink:#e9e8e4;--soft:#a7a9ad;--rule:#383b40;--faint:#24272b;
--blue:#8db8f0;--bad:#ff9a8f;--good:#7fd09b;--focus:#a8c7fa}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:78rem;padding:1.8rem clamp(.9rem,3vw,2.4rem) 3rem;background:var(--paper);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
font-variant-numeric:tabular-nums lining-nums}
h1,h2{font-family:"Iowan Old Style","Palatino Linotype",Palatino,Georgia,serif;font-weight:600;line-height:1.15}
h1{font-size:clamp(1.75rem,5vw,2.6rem);margin:0 0 .8rem}
h2{font-size:1.5rem;margin:2.4rem 0 .7rem;padding-top:.9rem;border-top:2px solid var(--ink)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}p{margin:.3rem 0;max-width:80ch}.soft,small{color:var(--soft)}
code{font:.86em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{color:var(--soft)}dd{margin:0}
.scroll{overflow-x:auto}:focus-visible{outline:3px solid var(--focus);outline-offset:2px}
table{border-collapse:collapse;width:100%;margin:.3rem 0 1rem}
th,td{text-align:left;vertical-align:top;padding:.32rem .9rem .32rem 0;border-bottom:1px solid var(--faint);
font-weight:400}
thead th{border-bottom:1px solid var(--ink);font-size:.8rem;color:var(--soft);white-space:nowrap}
tbody th{font-weight:500}td{white-space:nowrap}td.words{white-space:normal}
.worse{color:var(--bad);font-weight:600}.better{color:var(--good);font-weight:600}.same{color:var(--soft)}
.predicted{font-style:italic}summary{cursor:pointer;padding:.35rem 0}
@media print{body{background:none}details{display:none}.scroll{overflow:visible}}"""
CHANCE = 0.05
SIGNS = {True: "better", False: "worse"}


def write_page(path: Path, found: Mapping[str, Any]) -> Path:
    """Write the page to `path`. Raises StoreError."""
    write_file(path, ("\n".join(page(found)) + "\n").encode("utf-8", "replace"))
    return path


def page(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the page. found: what `pipelines.compare.changes` returned."""
    before, after = found["before"], found["after"]
    title = f"Build {before['number']} and build {after['number']}"
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Tapeout: {text(title)}</title><style>{STYLE}</style></head><body><main>"
    yield f"<h1>{text(title)}</h1><dl><dt>before<dd>{text(before['title'])}<dt>after<dd>{text(after['title'])}"
    for side in ("before", "after"):
        if found["overrides"][side]:
            codes = " ".join(f"<code>{text(each)}</code>" for each in found["overrides"][side])
            yield f"<dt>only {side}<dd>{codes}"
    yield "</dl>"
    for name, why in words.missing(found):
        yield f"<p>{text(name)} is not compared; {text(why)}</p>"
    yield from gates(found)
    yield '<section><h2 id="measured">Measured</h2>'
    for devices, device in words.groups(found):
        yield f"<h3>{text(', '.join(devices))}</h3>"
        yield from measured(device)
    yield "</section>"
    yield from all_devices([device for device in found["devices"] if words.compared(device)])
    yield from nodes(found["nodes"])
    yield "</main></body></html>"


def gates(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the gates whose verdict or bound differs."""
    yield '<section><h2 id="gates">Gates</h2>'
    rows = []
    for gate, devices in words.gates(found):
        was, now = gate["before"], gate["after"]
        kind = "" if not (was and now) or was["passed"] == now["passed"] else SIGNS[now["passed"]]
        rows.append([cell(", ".join(devices), "words"), cell(words.gate_words(gate), f"words {kind}".strip())])
    said = words.same_gates(found)
    yield from table(["devices", "what differs"], rows) if rows else [f"<p>{text(said[0].upper() + said[1:])}.</p>"]
    yield "</section>"


def measured(device: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was measured of devices that share it."""
    answers = {answer["task"]: answer for answer in device["answers"]}
    rows = []
    for task in words.tasks_of(device):
        chance = task in answers and answers[task]["p"] > CHANCE
        told = [figure(words.figure(device, task, name), chance) for name in words.TASK_FIGURES]
        paired = [cell(each) for each in words.significance(answers[task])] if task in answers else [cell("")] * 3
        count = words.pair(words.figure(device, task, "n"))
        rows.append([cell(task or "all"), cell(count), *told, *paired])
    head = ["task", "questions", "accuracy", "retention", "flips", "answers changed", "scores", "difference"]
    yield from table(head, rows)
    if answers:
        yield f'<p class="soft">{text(NOTES)}</p>'
    if device["unpaired"]:
        yield f"<p>Answers are not compared: {text(device['unpaired'])}.</p>"
    yield from table(["figure", ""], [[cell(row["metric"]), figure(row)] for row in words.other_rows(device)])


def all_devices(devices: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield size and predictions of each device, and every figure of it to unfold."""
    known = [name for name in words.COLUMNS if any(name in words.rows_of(device) for device in devices)]
    yield '<section><h2 id="devices">Devices</h2>'
    rows = []
    for device in devices:
        found = words.rows_of(device)
        rows.append([cell(device["device"] or "no device"), *(figure(found.get(name)) for name in known)])
    yield from table(["device", *(words.COLUMNS[name] for name in known)], rows)
    if any(name.startswith("predicted.") for name in known):
        yield '<p class="soft">* and in italics: predicted, not measured.</p>'
    for device in devices:
        rows = [[cell(row["metric"]), figure(row)] for row in device["metrics"]]
        yield f"<details><summary>Every figure of {text(device['device'] or 'no device')}</summary>"
        yield from table(["figure", ""], rows)
        yield "</details>"
    yield "</section>"


def nodes(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the nodes whose results differ."""
    yield '<section><h2 id="results">Results that differ</h2>'
    rows = []
    for node in found:
        sides = [node[side] for side in ("before", "after")]
        names = list(dict.fromkeys(side["node"] for side in sides if side))
        digests = [f"<td><code>{text((side['digest'] or '')[:12] if side else '')}</code></td>" for side in sides]
        why = "; ".join(node["why"]) or (
            "only before" if sides[1] is None else "only after" if sides[0] is None else ""
        )
        rows.append([cell(words.ARROW.join(names)), *digests, cell(why, "words")])
    yield from table(["node", "before", "after", "why"], rows) if rows else ["<p>None: every result is the same.</p>"]
    yield "</section>"


def figure(row: Mapping[str, Any] | None, chance: bool = False) -> str:
    """Return the cell of a figure, before and after; whether that is better is told by a word, too. chance: what
    changed is as likely to go the other way."""
    told = words.pair(row)
    if row is None or words.ARROW not in told:
        return cell(told, "same")
    if chance:
        return cell(told, "", "within chance")
    kind = SIGNS.get(row["better"], "")
    return cell(told, f"{kind}{' predicted' if row['predicted'] else ''}".strip(), kind)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table that scrolls on its own where it is wider than the page; nothing where it has no rows."""
    if not rows:
        return
    yield '<div class="scroll" tabindex="0" role="group" aria-label="table"><table><thead><tr>'
    yield "".join(f'<th scope="col">{text(each)}</th>' for each in head) + "</tr></thead><tbody>"
    for row in rows:
        first = row[0].replace("<td", '<th scope="row"', 1).removesuffix("</td>") + "</th>"
        yield f"<tr>{first}{''.join(row[1:])}</tr>"
    yield "</tbody></table></div>"


def cell(words: str, kind: str = "", sign: str = "") -> str:
    """Return a cell. sign: a word behind it, so that colour is not all that tells."""
    opened = f'<td class="{kind}">' if kind else "<td>"
    told = text(words).replace("-&gt;", "→")
    return f"{opened}{told}{f' <small>{sign}</small>' if sign else ''}</td>"


def text(value: str) -> str:
    return html.escape(str(value))
