"""Run the shipped files and hold them against torch, against the float model's answers, and against the gates."""

from typing import Any

import torch

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, Probe, QuantizedModel, Validation
from stages.evaluation.gates import check_budgets, check_gates
from stages.evaluation.parity import measure_parity
from stages.evaluation.predicted import predicted
from stages.evaluation.questioning import ask
from stages.schema import DeviceProfile, ValidateConfig, ValidationKind


def validate(
    model: QuantizedModel,
    device_model: DeviceModel,
    config: ValidateConfig,
    device: DeviceProfile,
    work: Workspace,
    baseline: Validation | None = None,
    probe: Probe | None = None,
) -> Validation:
    """metrics.json: parity with torch; size; how many risks the lowering found; what is predicted for the device, where
    enough is known of it; gates. Where questions are asked also accuracy, retention and its interval a task, with
    answers.jsonl.

    baseline: needed for questions; probe: for parity. Raises StageError for questions to a model that cannot answer.
    """
    torch.set_num_threads(config.threads)
    if config.kind is ValidationKind.parity:
        if probe is None:
            raise StageError("validate.kind=parity needs a probe", hint="give stage validate `needs: {probe: probe}`")
        measured: dict[str, Any] = {
            "tasks": {},
            "parity": measure_parity(model, probe, device_model, config.threads, work.progress),
        }
    else:
        if baseline is None:
            raise StageError("validate.kind=questions needs a baseline", hint="set validate=parity, or give it one")
        measured = ask(model, device_model, baseline, config, work)
    result = Validation(work.out)
    size = sum(path.stat().st_size for path in device_model.path.rglob("*") if path.is_file())
    description = device_model.description()
    metrics = {**measured, "size_bytes": size, "risks": len(description.get("risks", []))}
    if latencies := predicted(model, description, device):
        metrics["predicted"] = latencies
    metrics["gates"] = check_gates(metrics, config.gates) + check_budgets(metrics, device.budgets)
    result.write_json("metrics.json", metrics)
    return result
