"""calibrate: what a seeded set of sequences shows of each layer, as a Calibration."""

from dataclasses import asdict

from pipelines.workspace import Workspace
from stages.artifacts import Calibration, Checkpoint
from stages.quantizers.sequences import samples_of
from stages.quantizers.statistics import StatisticsReader, one_thread, sensitivity
from stages.quantizers.streaming import measure, write_statistics
from stages.schema import CalibrateConfig


def calibrate(checkpoint: Checkpoint, config: CalibrateConfig, work: Workspace) -> Calibration:
    """Second moments and ranges over the sequences, and with config.fisher each weight's Fisher information and
    sensitivity. Memory holds a part of the model at a time; after a kill, parts that were finished are not run again.

    Raises StageError for an empty set, for data of the user's that is not as expected, and for activations that are not
    finite, naming the layer.
    """
    calibration = Calibration(work.out)
    with one_thread():
        files = measure(checkpoint, samples_of(checkpoint, config), config, work.scratch, work.progress)
        write_statistics(calibration.statistics, files)
        scores = sensitivity(checkpoint, StatisticsReader(calibration.statistics))
    calibration.write_json("sensitivity.json", scores)
    calibration.write_json("settings.json", {**asdict(config), "draw": config.draw.value})
    return calibration
