"""What differs between two builds, as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines import compared_words as words

NOTES = "difference in points, with its 95 % interval; p: exact sign test, of this task alone"
PREDICTED = "* predicted, not measured"


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines. found: what `pipelines.compare.changes` returned."""
    yield f"before     {found['before']['title']}"
    yield f"after      {found['after']['title']}"
    for side in ("before", "after"):
        if found["overrides"][side]:
            yield f"overrides  only {side}: {' '.join(found['overrides'][side])}"
    for name, why in words.missing(found):
        yield f"{name}: not compared; {why}"
    for devices, device in words.groups(found):
        yield from ("", words.listed(devices))
        yield from (f"  {line}" for line in measured(device))
    yield from devices_table([device for device in found["devices"] if words.compared(device)])
    yield from gate_lines(found)
    yield from node_lines(found)


def measured(device: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was measured of devices that share it."""
    tasks = words.tasks_of(device)
    answers = {answer["task"]: answer for answer in device["answers"]}
    if tasks:
        rows = [["task", "questions", "accuracy", "retention", "flips", "answers changed", "scores", "difference"]]
        for task in tasks:
            told = [words.pair(words.figure(device, task, name)) for name in words.TASK_FIGURES]
            paired = list(words.significance(answers[task])) if task in answers else ["", "", ""]
            count = words.pair(words.figure(device, task, "n"))
            rows.append([task or "all", count, *told, *paired])
        yield from table(rows)
        if answers:
            yield NOTES
    if device["unpaired"]:
        yield f"answers not compared: {device['unpaired']}"
    rest = words.other_rows(device)
    yield from table([[row["metric"], words.pair(row)] for row in rest])
    if not rest and not tasks:
        yield "nothing measured differs"


def devices_table(devices: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield size and predictions, a row for each device."""
    known = [name for name in words.COLUMNS if any(name in words.rows_of(device) for device in devices)]
    if not known:
        return
    rows = [["device", *(words.COLUMNS[name] for name in known)]]
    for device in devices:
        figures = words.rows_of(device)
        rows.append([device["device"] or "no device", *(words.pair(figures.get(name)) for name in known)])
    yield from ("", *table(rows))
    if any(name.startswith("predicted.") for name in known):
        yield PREDICTED


def gate_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the gates whose verdict or bound differs, each once for all devices of which it is true."""
    told = words.gates(found)
    yield from ("", "gates" if told else f"gates: {words.same_gates(found)}")
    for gate, devices in told:
        yield f"  {words.listed(devices)}: {words.gate_words(gate)}"


def node_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the nodes whose results differ, and why."""
    nodes = found["nodes"]
    yield from ("", f"results that differ: {len(nodes)}" if nodes else "every result is the same")
    rows = []
    for node in nodes:
        old, new = node["before"], node["after"]
        name = new["node"] if new else old["node"]
        if old and new and old["node"] != new["node"]:
            name = f"{old['node']}{words.ARROW}{name}"
        why = "only before" if new is None else "only after" if old is None else words.listed(node["why"], 3)
        rows.append([name, why])
    yield from (f"  {line}" for line in table(rows))


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows with their columns aligned; a column that is empty beneath its title is left out."""
    kept = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:] or rows)] if rows else []
    widths = {place: max(len(row[place]) for row in rows) for place in kept}
    for row in rows:
        yield "  ".join(row[place].ljust(widths[place]) for place in kept).rstrip()
