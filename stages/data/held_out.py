"""The held-out questions that a build asks: those of a folder of your own, or procedural ones."""

from pathlib import Path

from stages.data.dataset import read_dataset
from stages.data.example import Questions
from stages.data.source import question_source
from stages.schema import QuestionsConfig


def examples_of(config: QuestionsConfig, *, decode: bool = True) -> Questions:
    """The held-out questions of a configuration, the same each time, on every machine.

    Of config.path, the lines in their order: all, or config.per_task of each task, drawn by config.seed (of a task that
    has fewer, all). Without a path, config.per_task procedural questions of each task. decode: also of each image that
    is asked about, whether it can be read to its end; leave it out where another stage has looked. Raises StageError
    with all that is wrong with the folder.
    """
    if config.path is not None:
        return read_dataset(Path(config.path), config.tasks, config.per_task, config.seed, decode=decode)
    assert config.per_task is not None  # the check has seen to it
    examples = question_source().by_task(config.per_task, config.seed)
    return Questions(examples, examples)
