"""What differs between two builds in words and cells, for the terminal and for the page. See pipelines/compare.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.numbers import significant

SHARES = re.compile(
    r"(^|[._])(fp32|artifact|retention|retention_low|retention_high|flips|exact|cer|anls|agreement|top1)$"
)
OF_TASKS = re.compile(r"(overall|tasks\.(?P<task>.+))\.(?P<name>[^.]+)")
TASK_FIGURES = ("artifact", "retention", "flips")
ARROW = " -> "
ABSENT = "not among the devices"  # of a device that a build was not for
COLUMNS = {  # of the table of devices: what is predicted is told to be
    "size_bytes": "size",
    "predicted.token_ms": "a token *",
    "predicted.first_token_ms": "first token *",
    "predicted.encode_ms": "image *",
    "predicted.peak_memory_mib": "memory *",
}


def rows_of(device: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return a device's figures by name."""
    return {row["metric"]: row for row in device["metrics"]}


def compared(device: Mapping[str, Any]) -> bool:
    """Say whether both builds have figures of a device."""
    return device["before"] is None and device["after"] is None


def groups(found: Mapping[str, Any]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Return the devices of which the same was measured, with what that is: those that share the evaluation do."""
    kept: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for device in filter(compared, found["devices"]):
        measured = [row for row in device["metrics"] if not row["predicted"] and row["metric"] != "size_bytes"]
        mark = json.dumps([measured, device["answers"], device["unpaired"]])
        kept.setdefault(mark, ([], {**device, "metrics": measured}))[0].append(device["device"] or "no device")
    return list(kept.values())


def tasks_of(device: Mapping[str, Any]) -> list[str | None]:
    """Return the tasks of which there are figures, None for all questions together."""
    found: dict[str | None, None] = {}
    for row in device["metrics"]:
        if match := OF_TASKS.fullmatch(row["metric"]):
            found[match["task"]] = None
    return list(found)


def figure(device: Mapping[str, Any], task: str | None, name: str) -> Mapping[str, Any] | None:
    """Return a task's figure, or None."""
    return rows_of(device).get(f"tasks.{task}.{name}" if task else f"overall.{name}")


def other_rows(device: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what was measured and is no task's, and differs."""
    return [row for row in device["metrics"] if not OF_TASKS.fullmatch(row["metric"]) and row["change"] != 0]


def pair(row: Mapping[str, Any] | None) -> str:
    """Return a figure before and after; once, where nobody could tell the two apart."""
    if row is None:
        return "-"
    before, after = (value(row["metric"], row[side]) for side in ("before", "after"))
    return before if before == after else f"{before}{ARROW}{after}"


def value(metric: str, number: float | None) -> str:
    """Return a figure as its name wants it: a share in percent, bytes in MiB, a time in ms."""
    if number is None:
        return "-"
    last = metric.rpartition(".")[2]
    if last == "size_bytes":
        return f"{number / 2**20:.2f} MiB"
    if SHARES.search(metric):
        return f"{100 * number:.1f} %"
    unit = {"_ms": " ms", "_mib": " MiB"}.get(last[last.rfind("_") :], "")
    return f"{significant(number, 4)}{unit}" if isinstance(number, float) else f"{number}{unit}"


def significance(answer: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what became of a task's questions: answers that changed; scores that rose and fell; and the difference of
    the mean score in points with its interval, and p."""
    points = [f"{100 * answer[key]:+.1f}" for key in ("difference", "low", "high")]
    return (
        f"{100 * answer['answers_changed']:.1f} %",
        f"+{answer['rose']} -{answer['fell']}",
        f"{points[0]} [{points[1]}, {points[2]}], p {probability(answer['p'])}",
    )


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}".rstrip("0").rstrip(".") if p < 1 else "1"


def gates(found: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Return the gates that differ, each once with all devices of which it is true."""
    told: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for device in found["devices"]:
        for gate in device["gates"]:
            told.setdefault(gate_words(gate), (gate, []))[1].append(device["device"] or "no device")
    return list(told.values())


def same_gates(found: Mapping[str, Any]) -> str:
    """Return what there is to say where no gate differs: the verdicts are the same, or none could be compared."""
    devices = found["devices"]
    if any(compared(device) for device in devices):
        return "the same verdicts"
    if not devices:
        return "neither build has any"
    apart = all(ABSENT in (device["before"], device["after"]) for device in devices)
    return "not compared: no device " + ("is in both builds" if apart else "has figures in both builds")


def gate_words(gate: Mapping[str, Any]) -> str:
    """Return in words how a gate's verdict or bound differs."""
    subject = f"{gate['metric']} of {gate['task']}" if gate["task"] else str(gate["metric"])
    sides = [verdict(gate[side]) for side in ("before", "after")]
    bounds = [bound(gate, gate[side]) for side in ("before", "after") if gate[side]]
    return f"{subject}: {ARROW.join(sides)}; {ARROW.join(dict.fromkeys(bounds))}"


def verdict(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return "no gate"
    found = "not measured" if gate["value"] is None else significant(gate["value"], 6)
    return f"{'passed' if gate['passed'] else 'FAILED'} with {found}"


def bound(gate: Mapping[str, Any], side: Mapping[str, Any]) -> str:
    return f"at {'least' if gate['kind'] == 'min' else 'most'} {significant(side['bound'], 6)}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def missing(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each device of which only one build has figures, or none, and why."""
    for device in found["devices"]:
        if not compared(device):
            why = [f"{side}: {device[side]}" for side in ("before", "after") if device[side]]
            yield device["device"] or "no device", "; ".join(why)
