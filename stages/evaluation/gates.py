"""Gates: bounds on validated metrics, measured or predicted. One that fails, fails its device's build."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.errors import ConfigError, nearest
from stages.evaluation.names import OVERALL, PREDICTED_METRICS, WHERE_KNOWN
from stages.schema import Budgets, Gate, Prediction

_BUDGETS = {  # a budget: the metric that it bounds
    "memory_mib": "predicted.peak_memory_mib",
    "token_ms": "predicted.token_ms",
    "first_token_ms": "predicted.first_token_ms",
    "encode_ms": "predicted.encode_ms",
}
_UNTOLD = ("tasks", "questions", "overall", "gates", "by_context", "basis")  # no metrics of the model as a whole


def check_gates(metrics: dict[str, Any], gates: Sequence[Gate], predictions: Prediction) -> list[dict[str, Any]]:
    """Each gate with what it found: {metric, task, value, bound, kind: "min"|"max", passed, by: how far inside of the
    bound it is (negative: outside), predicted: bool, end: "low", "high" or "value" of an interval}.

    A metric of a task (retention_low) is checked for the task that the gate names, or for every task; others are
    found by path ("parity.top1", "size_bytes"). Of what is predicted the end of the interval that is worse for the
    gate counts, or the value, as `predictions` says. Raises ConfigError for a metric or a task that there is none of.
    """
    results = []
    for gate in gates:
        for task, value in _values(metrics, gate):
            for kind, bound in (("min", gate.min), ("max", gate.max)):
                if bound is not None:
                    results.append(_result(gate.metric, task, value, kind, bound, predictions))
    return results


def check_budgets(metrics: dict[str, Any], budgets: Budgets, predictions: Prediction) -> list[dict[str, Any]]:
    """The device's budgets as gates, in the form of `check_gates`. Raises ConfigError for a budget of what could not be
    predicted."""
    found = _flatten(metrics)
    results = []
    for name, bound in asdict(budgets).items():
        if bound is None:
            continue
        if name == "size_mib":
            results.append(_result("budget.size_mib", None, metrics["size_bytes"] / 2**20, "max", bound, predictions))
        elif _BUDGETS[name] not in found:
            raise ConfigError(
                f"budgets.{name} is {bound}, and that cannot be predicted of this model on this device",
                hint="set it to null: predictions are of language models, on devices whose hardware is known",
            )
        else:
            results.append(_result(f"budget.{name}", None, found[_BUDGETS[name]], "max", bound, predictions))
    return results


def _result(
    metric: str, task: str | None, value: Any, kind: str, bound: float, predictions: Prediction
) -> dict[str, Any]:
    predicted, end = isinstance(value, dict), "value"
    if predicted:
        if predictions is Prediction.worst:
            end = "low" if kind == "min" else "high"
        value = value[end]
    by = value - bound if kind == "min" else bound - value
    return {
        "metric": metric,
        "task": task,
        "value": value,
        "bound": bound,
        "kind": kind,
        "passed": bool(by >= 0),
        "by": by,
        "predicted": predicted,
        "end": end,
    }


def _values(metrics: dict[str, Any], gate: Gate) -> Iterator[tuple[str | None, Any]]:
    """(task, what was found) of each that the gate bounds; None of WHERE_KNOWN that is not."""
    tasks, flat = metrics["tasks"], _flatten(metrics)
    if gate.metric in flat and gate.task is None:
        yield None, flat[gate.metric]
        return
    if gate.metric in WHERE_KNOWN:
        return
    if gate.metric in PREDICTED_METRICS:
        raise ConfigError(
            f"validate.gates: {gate.metric} cannot be predicted of this model on this device",
            hint="what it follows from is null in the device's profile; leave out the gate, or say it",
        )
    if gate.task == OVERALL:
        chosen = {OVERALL: metrics.get("overall", {})}
    elif gate.task is not None and gate.task not in tasks:
        raise ConfigError(
            f"validate.gates: there is no task {gate.task!r}",
            hint=nearest(gate.task, tasks) or f"tasks: {', '.join(tasks)}",
        )
    else:
        chosen = {gate.task: tasks[gate.task]} if gate.task else tasks
    found = {task: values[gate.metric] for task, values in chosen.items() if gate.metric in values}
    if not found:
        known = [*flat, *sorted({name for task in tasks.values() for name in task})]
        raise ConfigError(
            f"validate.gates: there is no metric {gate.metric!r}" + (f" of {gate.task}" if gate.task else ""),
            hint=nearest(gate.metric, known) or f"metrics: {', '.join(known)}",
        )
    yield from found.items()


def _flatten(metrics: dict[str, Any]) -> dict[str, Any]:
    """{path: number, or {"value", "low", "high"} of what is predicted}."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if key in _UNTOLD:
            continue
        if isinstance(value, int | float):
            flat[key] = value
        elif isinstance(value, dict):
            flat |= {f"{key}.{name}": each for name, each in value.items()}
    return flat
