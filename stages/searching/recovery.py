"""A candidate cut out of the supernet, taught by the loaded model, and asked again."""

import json
import shutil
from typing import Any

import torch

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.distillation.teaching import teach
from stages.elastic.extraction import extract
from stages.schema.search import RecoverConfig
from stages.search_artifacts import Supernet
from stages.searching.judge import Questions, score_model

EXTRACTED = "extracted"


def recover_candidate(
    checkpoint: Checkpoint, supernet: Supernet, item: dict[str, Any], config: RecoverConfig, work: Workspace
) -> dict[str, Any]:
    """The recovered checkpoint of item["architecture"] in work.out; returns the fields of its Score.

    Killed at any moment, it goes on from its last saved state.
    """
    student = extract(supernet, item["architecture"], checkpoint, work.scratch / EXTRACTED)
    if config.training.steps:
        recovered = teach(checkpoint, student, config.training, work)
    else:
        shutil.copytree(student.path, work.out, dirs_exist_ok=True)
        recovered = Checkpoint(work.out)
    torch.set_num_threads(1)
    score = score_model(recovered.model(), Questions(recovered, config.images, config.seed))
    work.log(f"{json.dumps(item['architecture'], sort_keys=True)}: {100 * score.accuracy:.2f} % right, after recovery")
    return vars(score)
