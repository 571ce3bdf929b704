"""Gates: bounds on validated metrics. One that fails, fails its device's build."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.errors import ConfigError, nearest
from stages.schema import Budgets, Gate


def check_gates(metrics: dict[str, Any], gates: Sequence[Gate]) -> list[dict[str, Any]]:
    """Each gate with the value that it found: {metric, task, value, bound, kind: "min"|"max", passed}.

    A metric of a task (retention_low) is checked for the task that the gate names, or for every task; others are
    found by path ("parity.top1", "size_bytes"). Raises ConfigError for a metric or a task that there is none of.
    """
    results = []
    for gate in gates:
        for task, value in _values(metrics, gate):
            for kind, bound in (("min", gate.min), ("max", gate.max)):
                if bound is not None:
                    passed = value >= bound if kind == "min" else value <= bound
                    results.append(
                        {
                            "metric": gate.metric,
                            "task": task,
                            "value": value,
                            "bound": bound,
                            "kind": kind,
                            "passed": bool(passed),
                        }
                    )
    return results


def check_budgets(metrics: dict[str, Any], budgets: Budgets) -> list[dict[str, Any]]:
    """The device's budgets as gates, in the form of `check_gates`. Raises ConfigError for a budget of what could not be
    predicted."""
    found = {"size_mib": metrics["size_bytes"] / 2**20, **metrics.get("predicted", {})}
    results = []
    for name, bound in asdict(budgets).items():
        if bound is None:
            continue
        if name not in found:
            raise ConfigError(
                f"budgets.{name} is {bound}, and no latency can be predicted of this model on this device",
                hint="set it to null: predictions are of language models, on devices whose hardware is known",
            )
        gate = {"metric": f"budget.{name}", "task": None, "value": found[name], "bound": bound, "kind": "max"}
        results.append({**gate, "passed": found[name] <= bound})
    return results


def _values(metrics: dict[str, Any], gate: Gate) -> list[tuple[str | None, float]]:
    tasks = metrics["tasks"]
    flat = _flatten({key: value for key, value in metrics.items() if key not in ("tasks", "questions")})
    if gate.metric in flat and gate.task is None:
        return [(None, flat[gate.metric])]
    of_tasks = sorted({name for task in tasks.values() for name in task})
    if gate.metric not in of_tasks:
        known = [*flat, *of_tasks]
        raise ConfigError(
            f"validate.gates: there is no metric {gate.metric!r}",
            hint=nearest(gate.metric, known) or f"metrics: {', '.join(known)}",
        )
    if gate.task is not None and gate.task not in tasks:
        raise ConfigError(
            f"validate.gates: there is no task {gate.task!r}",
            hint=nearest(gate.task, tasks) or f"tasks: {', '.join(tasks)}",
        )
    return [(task, tasks[task][gate.metric]) for task in ([gate.task] if gate.task else tasks)]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            flat[prefix + key] = value
    return flat
