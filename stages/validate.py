"""Run the shipped files on held-out questions, and hold them against the float model and against the gates."""

from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, QuantizedModel, Validation
from stages.data.image import preprocess
from stages.data.source import Example, question_source
from stages.evaluation.answers import Answer, preprocessed, prompt_format, read_answers, write_answers
from stages.evaluation.gates import check_budgets, check_gates
from stages.evaluation.metrics import compare
from stages.evaluation.scores import score
from stages.evaluation.torch_answers import agreement, encode_images
from stages.runtimes.generate import generate
from stages.runtimes.opening import open_session
from stages.schema import DeviceProfile, ValidateConfig


def validate(
    baseline: Validation,
    model: QuantizedModel,
    device_model: DeviceModel,
    config: ValidateConfig,
    device: DeviceProfile,
    work: Workspace,
) -> Validation:
    """metrics.json: accuracy, retention and its interval a task; parity with torch; size; gates. answers.jsonl."""
    drawn = baseline.metrics()["questions"]
    examples = question_source().by_task(drawn["per_task"], drawn["seed"])
    answers = _answer(device_model, model, examples, work)
    write_answers(work.out / "answers.jsonl", answers)
    result = Validation(work.out)
    metrics = {
        "questions": drawn,
        "tasks": compare(answers, read_answers(baseline.path / "answers.jsonl"), config),
        "parity": _parity(model, examples, answers),
        "size_bytes": sum(path.stat().st_size for path in device_model.path.rglob("*") if path.is_file()),
    }
    metrics["gates"] = check_gates(metrics, config.gates) + check_budgets(metrics, device.budgets)
    result.write_json("metrics.json", metrics)
    return result


def _answer(device_model: DeviceModel, model: QuantizedModel, examples: list[Example], work: Workspace) -> list[Answer]:
    """Each answer generated token by token by the runtime, from the image through the artifact's own preprocessing."""
    session = open_session(device_model)
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
