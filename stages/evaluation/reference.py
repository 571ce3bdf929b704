"""The float checkpoint's answers, drawn and answered by several processes."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.data.asked import join_asked, read_asked, write_asked
from stages.data.example import Example, Questions
from stages.data.held_out import examples_of
from stages.data.prompt import PromptFormat
from stages.data.source import question_source
from stages.evaluation.answers import answered, preprocessed, prompt_format, write_answers
from stages.evaluation.batching import batch_size
from stages.evaluation.metrics import tasks_of
from stages.evaluation.names import TASKS
from stages.models.vlm import VisionLanguageModel
from stages.schema import QuestionsConfig

PART = 250  # questions of a folder that one call answers


def ask_all(checkpoint: Checkpoint, config: QuestionsConfig, work: Workspace) -> dict[str, Any]:
    """Write the questions and answers.jsonl to work.out; return what metrics.json says of them.

    Procedural questions are drawn task by task, those of a folder are checked here, and answered part by part.
    """
    if checkpoint.config().vision is None:
        raise StageError("the questions are about images, and the model has no tower", hint="set validate=parity")
    if config.path is None:
        items: list[dict[str, Any]] = [{"task": task} for task in TASKS]
    else:
        questions = examples_of(config)
        work.log(f"{len(questions)} of the {len(questions.corpus)} lines of {config.path}/questions.jsonl are asked")
        write_asked(work.out, questions)
        items = [{"start": start, "stop": start + PART} for start in range(0, len(questions), PART)]
    tokens: dict[int, list[list[int]]] = {}
    folders: dict[int, Path] = {}
    for index, (found, folder) in work.map("stages.evaluation.reference.answer_part", items, folders=True):
        tokens[index], folders[index] = found, folder
        work.progress(len(tokens), len(items), "parts of the questions")
    if config.path is None:
        join_asked(work.out, [folders[index] for index in range(len(items))])
    asked = read_asked(work.out)
    prompts = prompt_format(checkpoint.path, checkpoint.config())
    answers = answered(prompts, asked, [each for index in range(len(items)) for each in tokens[index]])
    write_answers(work.out / "answers.jsonl", answers)
    described = {
        "source": "procedural" if config.path is None else Path(config.path).name,
        "count": len(asked),
        "per_task": config.per_task,
        "seed": config.seed,
    }
    return {"questions": described, "tasks": tasks_of(asked, answers)}


def answer_part(item: Mapping[str, Any], checkpoint: Checkpoint, config: QuestionsConfig, work: Workspace) -> Any:
    """The answers' tokens of item["task"], whose questions are written to work.out, or from item["start"] to "stop"."""
    import torch

    torch.set_num_threads(1)
    if "task" in item:
        assert config.per_task is not None
        examples: Sequence[Example] = question_source().of_task(item["task"], config.per_task, config.seed)
        write_asked(work.out, Questions(examples, examples))
    else:
        examples = _of_folder(config.path, config.per_task, config.seed, tuple(config.tasks.items()))
        examples = examples[item["start"] : item["stop"]]
        (work.out / "part").touch()  # a folder that is kept cannot be empty
    return _answers(checkpoint, examples)


@lru_cache(maxsize=1)
def _of_folder(path: str | None, per_task: int | None, seed: int, tasks: tuple[tuple[str, str], ...]) -> Questions:
    return examples_of(QuestionsConfig(path, per_task, seed, dict(tasks)), decode=False)


@lru_cache(maxsize=1)
def _model(checkpoint: Path) -> VisionLanguageModel:
    return Checkpoint(checkpoint).model()


def _answers(checkpoint: Checkpoint, examples: Sequence[Example]) -> list[list[int]]:
    from stages.evaluation.torch_answers import encode_images, generate

    model, prompts = _model(checkpoint.path), prompt_format(checkpoint.path, checkpoint.config())
    found: list[list[int]] = []
    batch = batch_size(model.config, prompts.max_new_tokens)
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        features = encode_images(model, preprocessed(part, checkpoint.preprocessing()))
        questions = [_encoded(prompts, example) for example in part]
        found += generate(model, features, questions, end=prompts.end_id, limit=prompts.max_new_tokens)
    return found


def _encoded(prompts: PromptFormat, example: Example) -> list[int]:
    """The prompt's tokens. Raises StageError, naming the line, for a question that holds the image token."""
    try:
        return prompts.encode(example.question)
    except StageError as error:
        raise StageError(
            f"{example.where}: {error.message}" if example.where else error.message, hint=error.hint
        ) from error
