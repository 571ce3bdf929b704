"""distill: a student that is smaller, pruned or damaged learns the answers of its float32 teacher."""

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.distillation.source import Source
from stages.distillation.teaching import teach
from stages.schema import DistillConfig


def distill(
    teacher: Checkpoint, student: Checkpoint, config: DistillConfig, work: Workspace, source: Source | None = None
) -> Checkpoint:
    """The student after config.steps steps: see `teach`, whose errors it raises. Killed at any moment, it goes on from
    its last saved state."""
    return teach(teacher, student, config, work, source)
