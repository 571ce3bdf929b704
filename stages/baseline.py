"""The float checkpoint's answers to held-out questions: what every device's artifact is compared with."""

from pipelines.workspace import Workspace
from stages.artifacts import Baseline, Checkpoint
from stages.evaluation.reference import ask_all
from stages.schema import QuestionsConfig


def baseline(checkpoint: Checkpoint, config: QuestionsConfig, work: Workspace) -> Baseline:
    """The questions with their images, answers.jsonl, and metrics.json with each task's scores.

    Raises StageError for a model without a tower, and with all that is wrong with a folder of questions.
    """
    result = Baseline(work.out)
    result.write_json("metrics.json", ask_all(checkpoint, config, work))
    return result
