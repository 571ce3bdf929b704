"""Held-out questions, answered by the shipped files."""

from typing import Any

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, QuantizedModel, Validation
from stages.data.image import preprocess
from stages.data.source import Example, question_source
from stages.evaluation.answers import Answer, preprocessed, prompt_format, read_answers, write_answers
from stages.evaluation.metrics import compare
from stages.evaluation.scores import score
from stages.evaluation.torch_answers import agreement, encode_images
from stages.runtimes.generate import generate
from stages.runtimes.opening import open_session
from stages.schema import ValidateConfig


def ask(
    model: QuantizedModel, device_model: DeviceModel, baseline: Validation, config: ValidateConfig, work: Workspace
) -> dict[str, Any]:
    """The baseline's questions put to the device model: which they are, scores by task, and parity.

    Writes answers.jsonl. Raises StageError for a model without a tower: the questions are about images.
    """
    if model.config().vision is None:
        raise StageError("the questions are about images, and the model has no tower", hint="set validate=parity")
    drawn = baseline.metrics()["questions"]
    examples = question_source().by_task(drawn["per_task"], drawn["seed"])
    answers = _answer(device_model, model, examples, config.threads, work)
    write_answers(work.out / "answers.jsonl", answers)
    return {
        "questions": drawn,
        "tasks": compare(answers, read_answers(baseline.path / "answers.jsonl"), config),
        "parity": _parity(model, examples, answers),
    }


def _answer(
    device_model: DeviceModel, model: QuantizedModel, examples: list[Example], threads: int, work: Workspace
) -> list[Answer]:
    """Each answer generated token by token by the runtime, from the image through the artifact's own preprocessing."""
    session = open_session(device_model, threads)
    prompts = prompt_format(device_model.path, model.config())
    settings = device_model.read_json("preprocessing.json")
    answers = []
    for example in examples:
        features = session.encode(preprocess(example.image, settings))
        ids = prompts.encode(example.question)
        tokens = generate(session, ids, features, end_id=prompts.end_id, max_new_tokens=prompts.max_new_tokens)
        text = prompts.decode(tokens)
        value = score(example.task, text, example.answer)
        answers.append(Answer(example.task, example.question, example.answer, text, value, tokens))
        work.progress(len(answers), len(examples), "questions")
    return answers


def _parity(model: QuantizedModel, examples: list[Example], answers: list[Answer]) -> dict[str, float | int]:
    """top1: the share of the runtime's answer tokens that the dequantized torch model would have chosen."""
    torch_model = model.model()
    prompts = prompt_format(model.path, model.config())
    features = encode_images(torch_model, preprocessed(examples, model.read_json("preprocessing.json")))
    said = [[*answer.tokens, prompts.end_id][: prompts.max_new_tokens] for answer in answers]
    same, total = agreement(torch_model, features, [prompts.encode(example.question) for example in examples], said)
    return {"top1": same / total, "tokens": total}
