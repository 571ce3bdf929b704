"""load: a model's folder, checked, as a Checkpoint."""

from pathlib import Path

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.models.checkpoint import read_checkpoint, write_checkpoint
from stages.schema import ModelConfig


def load(config: ModelConfig, work: Workspace) -> Checkpoint:
    """The checkpoint in the folder config.path, every tensor checked, written in Tapeout's own layout.

    Raises CheckpointError, with what was found and what was expected, before anything is written.
    """
    source = read_checkpoint(Path(config.path), work.progress)
    write_checkpoint(source, work.out)
    return Checkpoint(work.out)
