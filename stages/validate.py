"""What a release engineer signs off on: what was measured, what is predicted of the device, and if that is enough."""

from typing import Any

from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, Evaluation, QuantizedModel, Validation
from stages.devices.risks import risks_of
from stages.evaluation.advice import advise
from stages.evaluation.gates import check_budgets, check_gates
from stages.evaluation.predicted import predicted
from stages.schema import DeviceProfile, ValidateConfig


def validate(
    evaluation: Evaluation,
    model: QuantizedModel,
    device_model: DeviceModel,
    config: ValidateConfig,
    device: DeviceProfile,
    work: Workspace,
) -> Validation:
    """metrics.json: the evaluation's; how many risks there are on the device; what is predicted for
    the device, where enough is known of it; gates, and what would help where one fails.

    Raises ConfigError for a gate on what there is not.
    """
    description = device_model.description()
    metrics: dict[str, Any] = {
        **evaluation.metrics(),
        "risks": len(risks_of(description, model, device)),
        **predicted(model, description, device),
    }
    gates = check_gates(metrics, config.gates, config.predictions)
    gates += check_budgets(metrics, device.budgets, config.predictions)
    result = Validation(work.out)
    metrics["gates"] = advise(gates, metrics, evaluation, model, device)
    result.write_json("metrics.json", metrics)
    return result
