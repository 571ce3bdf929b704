"""What is measured, and the gates on it."""

from __future__ import annotations

import re
from dataclasses import asdict

from pipelines.errors import ConfigError, nearest, suggestion
from stages.data.lines import check_dataset
from stages.devices.hardware import check_metric, check_numbers
from stages.evaluation.names import (
    MODEL_METRICS,
    OVERALL,
    PARITY_METRICS,
    PREDICTED_METRICS,
    TASK_METRICS,
    TASKS,
    TEXT_METRICS,
)
from stages.evaluation.text_metrics import METRICS
from stages.schema import DeviceProfile, Gate, QuestionsConfig, ValidateConfig, ValidationKind


def asks_questions(config: ValidateConfig, device: DeviceProfile) -> bool:
    """Whether validation needs the float model's answers."""
    return config.kind is ValidationKind.questions


def compares_numbers(config: ValidateConfig, device: DeviceProfile) -> bool:
    """Whether validation needs torch's numbers."""
    return config.kind is ValidationKind.parity


def validation(config: ValidateConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError for a gate on what is not measured, or one that says nothing, and for an idle bootstrap."""
    if config.resamples < 1:
        raise ConfigError(f"validate.resamples is {config.resamples}", hint="expected 1 or more; 2000 is usual")
    if config.threads < 1:
        raise ConfigError(f"validate.threads is {config.threads}", hint="expected 1 or more")
    if not 0 < config.confidence < 1:
        raise ConfigError(
            f"validate.confidence is {config.confidence}", hint="expected more than 0 and less than 1, such as 0.95"
        )
    for gate in config.gates:
        _check_gate(gate, config.kind)
    if device:
        _check_budgets(config, device)


def questions(config: QuestionsConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where nothing would be asked, for a folder without questions, and for an unknown metric."""
    if config.per_task is not None and config.per_task < 1:
        every = "" if config.path is None else "; null asks all that the folder has"
        raise ConfigError(f"questions.per_task is {config.per_task}", hint=f"expected 1 or more; 150 is usual{every}")
    if config.per_task is None and config.path is None:
        raise ConfigError(
            "questions.per_task is null, and the procedural questions have no end",
            hint="set questions.per_task=150, or questions.path to a folder of your own",
        )
    for task, metric in config.tasks.items():
        if not re.fullmatch(r"\w[\w-]*", task) or task == OVERALL:
            raise ConfigError(
                f"questions.tasks: '{task}' cannot be the name of a task",
                hint=f"expected letters, digits, _ and -, such as receipts, and not '{OVERALL}', which is all of them",
            )
        if metric not in METRICS:
            raise ConfigError(
                f"questions.tasks.{task} is '{metric}'", hint=suggestion(metric, METRICS, "metrics of a task")
            )
    if config.path is not None:
        check_dataset(config.path)


def _check_budgets(config: ValidateConfig, device: DeviceProfile) -> None:
    """Raise ConfigError for numbers of a device that cannot be, for a budget that nothing keeps, and for a bound on
    what cannot be predicted of the device."""
    check_numbers(device)
    budgets = asdict(device.budgets)
    for name, bound in budgets.items():
        if bound is not None and bound <= 0:
            raise ConfigError(
                f"device {device.name}: budgets.{name} is {bound}",
                hint="expected a number above 0, or null for no limit",
            )
    latencies = [name for name, bound in budgets.items() if bound is not None and name.endswith("_ms")]
    bounded = [gate.metric.removeprefix("predicted.") for gate in config.gates if gate.metric in PREDICTED_METRICS]
    for metric in (*latencies, *bounded):
        check_metric(device, metric)


def _check_gate(gate: Gate, kind: ValidationKind) -> None:
    of_tasks = (*TASK_METRICS, *TEXT_METRICS)
    known = PARITY_METRICS if kind is ValidationKind.parity else (*of_tasks, *MODEL_METRICS)
    if gate.metric in (*of_tasks, *MODEL_METRICS, *PARITY_METRICS) and gate.metric not in known:
        raise ConfigError(
            f"validate.gates: {gate.metric} is not measured where validate.kind is {kind.value}",
            hint=f"it measures: {', '.join(known)}",
        )
    if gate.metric not in known:
        raise ConfigError(
            f"validate.gates: there is no metric '{gate.metric}'",
            hint=nearest(gate.metric, known) or f"metrics: {', '.join(known)}",
        )
    if gate.task is not None and gate.metric not in of_tasks:
        raise ConfigError(
            f"validate.gates: {gate.metric} is not measured task by task; found task '{gate.task}'",
            hint="set task: null",
        )
    tasks = (*TASKS, OVERALL)
    if gate.task is not None and gate.task not in tasks and (hint := nearest(gate.task, tasks)):
        raise ConfigError(f"validate.gates: there is no task '{gate.task}'", hint=hint)  # others may be your own
    if gate.min is None and gate.max is None:
        raise ConfigError(f"validate.gates: the gate on {gate.metric} bounds nothing", hint="give it a min or a max")
    if gate.min is not None and gate.max is not None and gate.min > gate.max:
        raise ConfigError(
            f"validate.gates: the gate on {gate.metric} has a min of {gate.min} above its max of {gate.max}",
            hint="nothing could pass it; exchange them",
        )
