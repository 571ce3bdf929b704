"""quantize: a checkpoint's weights as codes, as a QuantizedModel in the neutral store."""

from pipelines.workspace import Workspace
from stages.artifacts import Allocation, Calibration, Checkpoint, QuantizedModel
from stages.quantizers.model import quantize_weights
from stages.quantizers.statistics import one_thread
from stages.schema import Method, QuantizeConfig


def quantize(
    checkpoint: Checkpoint,
    config: QuantizeConfig,
    work: Workspace,
    calibration: Calibration | None = None,
    allocation: Allocation | None = None,
) -> QuantizedModel:
    """Every weight as config says, or with the reason why not in formats.json; the rest as float16.

    calibration: needed by the methods that uses_statistics names; allocation: by those that choose formats themselves.

    Raises ConfigError for a combination that no weight can have, StageError for an override that fits no weight.
    """
    with one_thread():
        quantize_weights(checkpoint, calibration, allocation, config, work)
        ranges = None
        if config.activations:
            from stages.quantizers.nncf_static import static_ranges

            assert calibration is not None
            ranges = static_ranges(checkpoint, calibration)
    checkpoint.copy_description(work.out)
    model = QuantizedModel(work.out)
    model.write_json("method.json", {"weights": _weights(config, allocation)})
    if ranges is not None:
        model.write_json("activations.json", ranges)
    return model


def _weights(config: QuantizeConfig, allocation: Allocation | None) -> str:
    """What the weights were before they became codes: the checkpoint's, trained, or equalized by moving scales."""
    if config.method is Method.qat and config.training:
        return "trained"
    methods = {config.method, *(override.method for override in config.overrides)}
    methods |= {choice.method for choice in allocation.choices().values()} if allocation else set()
    return "equalized" if Method.awq in methods else "checkpoint"
