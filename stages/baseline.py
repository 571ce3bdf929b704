"""The float checkpoint's answers to held-out questions: what every device's artifact is compared with."""

import torch

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint, Validation
from stages.data.source import question_source
from stages.evaluation.answers import Answer, preprocessed, prompt_format, scores_by_task, write_answers
from stages.evaluation.scores import score
from stages.evaluation.torch_answers import encode_images, generate
from stages.schema import QuestionsConfig


def baseline(checkpoint: Checkpoint, config: QuestionsConfig, work: Workspace) -> Validation:
    """answers.jsonl, and metrics.json with each task's accuracy and which questions were drawn."""
    torch.set_num_threads(1)
    examples = question_source().by_task(config.per_task, config.seed)
    prompts = prompt_format(checkpoint.path, checkpoint.config())
    model = checkpoint.model()
    features = encode_images(model, preprocessed(examples, checkpoint.preprocessing()))
    tokens = generate(
        model,
        features,
        [prompts.encode(example.question) for example in examples],
        end=prompts.end_id,
        limit=prompts.max_new_tokens,
        tick=lambda done: work.progress(done, len(examples), "questions"),
    )
    answers = []
    for example, ids in zip(examples, tokens, strict=True):
        text = prompts.decode(ids)
        value = score(example.task, text, example.answer)
        answers.append(Answer(example.task, example.question, example.answer, text, value, ids))
    write_answers(work.out / "answers.jsonl", answers)
    tasks = {task: {"n": len(scores), "fp32": scores.mean()} for task, scores in scores_by_task(answers).items()}
    result = Validation(work.out)
    result.write_json("metrics.json", {"questions": {"per_task": config.per_task, "seed": config.seed}, "tasks": tasks})
    return result
