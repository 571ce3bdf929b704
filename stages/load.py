"""load: a model, wherever it comes from, checked, as a Checkpoint."""

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.models.checkpoint import read_checkpoint, write_checkpoint
from stages.models.module import read_module
from stages.models.shape import check_shape
from stages.models.sources import folder_of
from stages.schema import ModelConfig


def load(config: ModelConfig, work: Workspace) -> Checkpoint:
    """The checkpoint that config.path names, every tensor checked, written in Tapeout's own layout.

    Raises CheckpointError, with what was found and what was expected, before anything is written; for weights that hold
    NaN or infinite values, once they were read.
    """
    folder = folder_of(config.path, config.revision, work)
    contents = read_module(config, folder) if config.module else read_checkpoint(folder)
    check_shape(contents.config, config.shape)
    if left_over := contents.tensors.left_over(contents.weights.entries):
        work.log(f"not part of the model, and left out: {', '.join(left_over)}")
    write_checkpoint(contents, work.out, work.progress)
    return Checkpoint(work.out)
