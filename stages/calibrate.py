"""calibrate: what a seeded set of questions shows of each layer, as a Calibration."""

from pipelines.workspace import Workspace
from stages.artifacts import Calibration, Checkpoint
from stages.data.source import question_source
from stages.quantizers.statistics import measure, one_thread, sensitivity, write_statistics
from stages.schema import CalibrateConfig


def calibrate(checkpoint: Checkpoint, config: CalibrateConfig, work: Workspace) -> Calibration:
    """Second moments, ranges and Fisher information over config.samples questions, and each weight's sensitivity.

    Raises StageError for an empty set, and for activations that are not finite, naming the layer.
    """
    examples = question_source().examples("calibration", config.samples, config.seed)
    with one_thread():
        statistics = measure(checkpoint, examples, config, work.progress)
        scores = sensitivity(checkpoint, statistics)
    calibration = Calibration(work.out)
    write_statistics(calibration.statistics, statistics)
    calibration.write_json("sensitivity.json", scores)
    calibration.write_json("activations.json", statistics.activations)
    return calibration
