"""quantize: a checkpoint's weights as codes, as a QuantizedModel in the neutral store."""

from pipelines.workspace import Workspace
from stages.artifacts import Calibration, Checkpoint, QuantizedModel
from stages.quantizers.model import quantize_weights
from stages.quantizers.statistics import one_thread
from stages.schema import QuantizeConfig
from stages.tensorfile import copy_file


def quantize(
    checkpoint: Checkpoint, calibration: Calibration, config: QuantizeConfig, work: Workspace
) -> QuantizedModel:
    """Every weight as config says, or with the reason why not in formats.json; the rest as float16.

    Raises ConfigError for a combination that no weight can have, StageError for an override that fits no weight.
    """
    with one_thread():
        quantize_weights(checkpoint, calibration, config, work.out, work.progress)
    for name in ("config.json", "tokenizer.json", "preprocessing.json"):
        copy_file(checkpoint.path / name, work.out / name)
    return QuantizedModel(work.out)
