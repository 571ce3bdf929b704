"""sensitivity: what each format costs each weight, as a Sensitivity; for whatever budget and device."""

from pipelines.workspace import Workspace
from stages.artifacts import Calibration, Checkpoint, Sensitivity
from stages.quantizers.sensitivity import measure
from stages.quantizers.statistics import one_thread
from stages.schema import SensitivityConfig


def sensitivity(
    checkpoint: Checkpoint, calibration: Calibration, config: SensitivityConfig, work: Workspace
) -> Sensitivity:
    """Bytes, score and cost of every candidate of every weight. Killed, it goes on behind the last measurement."""
    with one_thread():
        table = measure(checkpoint, calibration, config, work)
    found = Sensitivity(work.out)
    found.write_json("table.json", table)
    return found
