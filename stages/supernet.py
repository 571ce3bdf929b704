"""supernet: the loaded model and all its subnets, trained together so that a search can score any of them at once."""

from safetensors.torch import save_file

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.distillation.source import ProceduralQuestions, Source
from stages.elastic.sorting import sorted_model
from stages.elastic.space import Space
from stages.elastic.training import train
from stages.schema.search import SupernetConfig
from stages.search_artifacts import Supernet


def supernet(checkpoint: Checkpoint, config: SupernetConfig, work: Workspace, source: Source | None = None) -> Supernet:
    """The checkpoint's weights, sorted by importance and trained by config.steps steps; with 0 only sorted.

    source: what to learn from; None: the reference data's training questions. Raises StageError for a model without a
    tower, ConfigError where nothing of it can shrink. Killed at any moment, it goes on from its last saved state.
    """
    space = Space.of(checkpoint.config(), config.space)
    source = source or ProceduralQuestions(checkpoint, seed=config.seed, batch=config.batch, workers=1)
    batches = source.batches(config.steps, config.steps + config.importance_batches)  # none of those trained on
    elastic = sorted_model(checkpoint.model(), source, batches)
    work.log(f"{space.size:,} architectures: " + ", ".join(f"{each.name} {each.values}" for each in space.dimensions))
    if config.steps:
        train(elastic, space, source, config, work)
    save_file({name: each.contiguous() for name, each in elastic.tensors.items()}, work.out / "supernet.safetensors")
    checkpoint.copy_description(work.out)
    result = Supernet(work.out)
    dimensions = [[each.name, list(each.values)] for each in space.dimensions]
    result.write_json("space.json", {"dimensions": dimensions, "layers": elastic.layers})
    return result
