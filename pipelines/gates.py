"""Gates: bounds on validated metrics, evaluated by the stage that measured them and read here.

The file that a stage declares as its `gates` is JSON with at least
{"gates": [{"metric", "task": str|null, "value", "bound", "kind": "min"|"max", "passed": bool}]}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.errors import StageError
from pipelines.plan import Node

KEYS = {"metric", "value", "bound", "kind", "passed"}


def read_metrics(folder: Path, node: Node) -> dict[str, Any]:
    """Return the content of the gates file in `folder`, an artifact of `node`. Raises StageError."""
    path = folder / str(node.stage.gates)
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        sound = all(set(gate) >= KEYS for gate in metrics["gates"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StageError(f"{node.name}: {path} does not hold gates: {error}") from error
    if not sound:
        raise StageError(f"{node.name}: {path}: a gate lacks one of {', '.join(sorted(KEYS))}")
    return dict(metrics)


def failed_gates(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the gates that did not pass."""
    return [gate for gate in metrics["gates"] if not gate["passed"]]


def describe(gate: dict[str, Any]) -> str:
    """Return a gate in words: "retention of ocr is 0.912, below 0.95"."""
    subject = f"{gate['metric']} of {gate['task']}" if gate.get("task") else str(gate["metric"])
    value = "not measured" if gate["value"] is None else f"{gate['value']:.6g}"
    return f"{subject} is {value}, {'below' if gate['kind'] == 'min' else 'above'} {gate['bound']:.6g}"
