"""Two gates files held against each other: every figure, and the gates with another verdict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from pipelines.gates import is_finite

PREDICTED = ("predicted", "by_context")  # parts of a gates file of which nothing was measured
APART = ("gates", "questions", "basis")  # parts that are no figures of the artifact
FIRST = (  # well-known metrics, by the end of their names and in the order in which they are shown
    *("artifact", "fp32", "retention", "retention_low", "retention_high", "flips", "exact", "cer", "anls", "cider"),
    *("kl", "kl_high", "agreement", "top1", "error", "size_bytes", "risks"),
    *("token_ms", "tokens_per_s", "first_token_ms"),
    *("prefill_ms", "encode_ms", "peak_memory_mib", "energy_j"),
)
PARTS = ("overall", "tasks", "fidelity", "parity", "size_bytes", "risks", "predicted", "by_context")
LESS = re.compile(r"(^|[._])(flips|cer|kl|kl_high|\w*error|risks|size_bytes|energy_j)$|_(ms|mib|bytes)$")  # is better
MORE = re.compile(
    r"(^|[._])(artifact|retention|retention_low|retention_high|exact|anls|cider|agreement|top1)$|tokens_per_s(_\w+)?$"
    r"|^by_context\."
)


def compare_metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every figure of two gates files (what `tapeout build --json` has under `metrics`), changed or not."""
    old, new = figures(before), figures(after)
    rows = []
    for name in sorted({**old, **new}, key=place):
        was, now = old.get(name), new.get(name)
        change = now["value"] - was["value"] if was and now else None
        rows.append(
            {
                "metric": name,
                "before": was["value"] if was else None,
                "after": now["value"] if now else None,
                "change": change,
                "better": is_better(name, change),
                "predicted": name.partition(".")[0] in PREDICTED,
                "before_interval": was["interval"] if was else None,
                "after_interval": now["interval"] if now else None,
            }
        )
    return rows


def compare_gates(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the gates whose verdict or bound is another one, and those that only one of two builds has."""
    old, new = numbered(before), numbered(after)
    found = []
    for mark in {**old, **new}:
        was, now = old.get(mark), new.get(mark)
        if was is None or now is None or (was["passed"], was["bound"]) != (now["passed"], now["bound"]):
            found.append({"metric": mark[0], "task": mark[1], "kind": mark[2], "before": was, "after": now})
    return found


def numbered(gates: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return each gate by what it bounds; a second bound of the same comes second."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for gate in gates:
        mark = (gate["metric"], gate.get("task"), gate["kind"], gate.get("end"))
        place = next(number for number in count() if (*mark, number) not in found)
        found[*mark, place] = dict(gate)
    return found


def figures(value: Any, name: str = "") -> dict[str, dict[str, Any]]:
    """Return {a.b.c: {"value", "interval"}} of all numbers in a gates file; {"value", "low", "high"} is one figure."""
    if is_finite(value):
        return {name: {"value": value, "interval": None}}
    if not isinstance(value, Mapping):
        return {}
    if set(value) >= {"value", "low", "high"} and all(is_finite(value[key]) for key in ("value", "low", "high")):
        return {name: {"value": value["value"], "interval": [value["low"], value["high"]]}}
    found: dict[str, dict[str, Any]] = {}
    for key, each in value.items():
        if name or key not in APART:
            found |= figures(each, f"{name}.{key}" if name else str(key))
    return found


def place(name: str) -> tuple[Any, ...]:
    """Return where a figure comes in a list: the well-known first, tasks each for itself."""
    part, _, rest = name.partition(".")
    group, _, last = rest.rpartition(".") if rest else ("", "", part)
    parts = PARTS.index(part) if part in PARTS else len(PARTS)
    known = FIRST.index(last) if last in FIRST else len(FIRST)
    number = int(group or last) if (group or last).isdecimal() else 0
    return parts, part, number, group, known, last


def is_better(name: str, change: float | None) -> bool | None:
    """Say whether a change is for the better; None where there is none, or where the framework cannot know."""
    if not change or not (LESS.search(name) or MORE.search(name)):
        return None
    return (change < 0) == bool(LESS.search(name))
