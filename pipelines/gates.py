"""Gates: bounds on validated metrics, evaluated by the stage that measured them and read here.

The file that a stage declares as its `gates` is JSON with at least
{"gates": [{"metric", "task": str|null, "value", "bound", "kind": "min"|"max", "passed": bool}]}, where "bound" is a
finite number, and "value" one or null. "predicted": true says that nothing measured the value; of its interval it is
the "end": "low", "high", or "value" for the middle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import StageError
from pipelines.numbers import significant
from pipelines.plan import Node

ENDS = {"low": "the low end", "high": "the high end", "value": "the middle"}
KEYS = {"metric", "value", "bound", "kind", "passed"}


def read_metrics(folder: Path, node: Node) -> dict[str, Any]:
    """Return the content of the gates file in `folder`, an artifact of `node`. Raises StageError."""
    return read_gates(folder / str(node.stage.gates), node)


def read_gates(path: Path, node: Node) -> dict[str, Any]:
    """Return the content of a gates file of `node`. Raises StageError."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StageError(f"{node.name}: {path} does not hold gates: {error}") from error
    if not isinstance(metrics, Mapping) or not isinstance(metrics.get("gates"), list):
        raise StageError(f"{node.name}: {path} does not hold gates: it must hold {{'gates': [...]}}")
    for gate in metrics["gates"]:
        if wrong := wrong_in(gate):
            raise StageError(f"{node.name}: {path}: {wrong}")
    return dict(metrics)


def wrong_in(gate: Any) -> str:
    """Return what is wrong with a gate, or ""."""
    if not isinstance(gate, Mapping):
        return f"a gate is {gate!r}, and must be a mapping"
    if not set(gate) >= KEYS:
        return f"a gate lacks one of {', '.join(sorted(KEYS))}"
    expected = {
        "metric": (isinstance(gate["metric"], str), "a text"),
        "task": (isinstance(gate.get("task"), str | None), "a text or null"),
        "value": (gate["value"] is None or is_finite(gate["value"]), "a finite number or null"),
        "bound": (is_finite(gate["bound"]), "a finite number"),
        "kind": (gate["kind"] in ("min", "max"), "'min' or 'max'"),
        "passed": (isinstance(gate["passed"], bool), "true or false"),
    }
    return next(
        (
            f"a gate's {key} is {gate.get(key)!r}, and must be {words}"
            for key, (right, words) in expected.items()
            if not right
        ),
        "",
    )


def is_finite(value: Any) -> bool:
    """Say whether `value` is a number, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def failed_gates(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the gates that did not pass."""
    return [gate for gate in metrics["gates"] if not gate["passed"]]


def describe(gate: dict[str, Any]) -> str:
    """Return a gate that failed in words: "retention of ocr is 0.912, below 0.95", or
    "budget.token_ms is 1.97, the high end of what is predicted, above 1.5"."""
    subject = f"{gate['metric']} of {gate['task']}" if gate.get("task") else str(gate["metric"])
    value = "not measured" if gate["value"] is None else significant(gate["value"], 6)
    end = f", {ENDS.get(str(gate.get('end')), 'a value')} of what is predicted" if gate.get("predicted") else ""
    side = "below" if gate["kind"] == "min" else "above"
    return f"{subject} is {value}{end}, {side} {significant(gate['bound'], 6)}"
