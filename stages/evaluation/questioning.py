"""Held-out questions, answered by the shipped files, and what that says of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.artifacts import Baseline, Checkpoint, DeviceModel, QuantizedModel
from stages.data.asked import read_asked
from stages.data.example import Questions
from stages.evaluation.alternatives import alternatives
from stages.evaluation.answers import Answer, answered, prompt_format, read_answers, write_answers
from stages.evaluation.difference import Difference
from stages.evaluation.fidelity import vocabulary
from stages.evaluation.metrics import compare
from stages.evaluation.proofs import write_proofs
from stages.schema import ValidateConfig

PART = 75  # questions that one call answers: its process opens the model once, for all of its calls
FLIPS = 40  # that are kept with their images
_CONVERTED = 0.99  # of the runtime's tokens: where fewer are torch's, no format of weights is at fault
_WIDTH = 320  # pixels, at most, of an image that is kept


def ask(
    checkpoint: Checkpoint,
    model: QuantizedModel,
    device_model: DeviceModel,
    baseline: Baseline,
    config: ValidateConfig,
    work: Workspace,
) -> dict[str, Any]:
    """The baseline's questions put to the device model: which they are, scores by task, parity and fidelity.

    Writes answers.jsonl, and flips.jsonl and proofs.jsonl with images. checkpoint: what was quantized. Raises
    StageError for a model without a tower: the questions are about images.
    """
    if model.config().vision is None:
        raise StageError("the questions are about images, and the model has no tower", hint="set validate=parity")
    questions = read_asked(baseline.path)
    check_lengths(device_model, model, questions)
    items = [{"start": start, "stop": min(start + PART, len(questions))} for start in range(0, len(questions), PART)]
    parts: dict[int, dict[str, Any]] = {}
    for index, part in work.map("stages.evaluation.part.evaluate_part", items, cpus=config.threads):
        parts[index] = part
        work.progress(sum(len(each["tokens"]) for each in parts.values()), len(questions), "questions")
    ordered = [parts[index] for index in range(len(items))]
    tokens = [ids for part in ordered for ids in part["tokens"]]
    answers = answered(prompt_format(device_model.path, model.config()), questions, tokens)
    reference = read_answers(baseline.path / "answers.jsonl")
    write_answers(work.out / "answers.jsonl", answers)
    _write_flips(work.out, questions, reference, answers)
    write_proofs(work.out, questions, answers)
    compared, parity = compare(questions, answers, reference, config), _parity(ordered)
    low = [task for task, found in compared["tasks"].items() if _is_low(found, config.advise)]
    if low and parity["top1"] > _CONVERTED:
        doubtful = [example for example in questions if example.task in low]
        measured = alternatives(checkpoint, model, doubtful, work)
        (work.out / "alternatives.json").write_text(json.dumps(measured, indent=2, sort_keys=True), encoding="utf-8")
    return {
        "questions": baseline.metrics()["questions"],
        **compared,
        "parity": parity,
        "fidelity": {**_fidelity(ordered), "vocabulary": vocabulary(checkpoint, device_model)},
    }


def check_lengths(device_model: DeviceModel, model: QuantizedModel, questions: Questions) -> None:
    """Raise StageError naming each question whose prompt leaves no room in the context for an answer."""
    prompts, context = prompt_format(device_model.path, model.config()), int(device_model.description()["context"])
    long = [
        f"{each.where or repr(each.question[:40])}: {count} tokens"
        for each in questions
        if (count := len(prompts.encode(each.question))) >= context
    ]
    if long:
        shown = "\n    ".join([*long[:10], *([f"and {len(long) - 10} more"] if len(long) > 10 else [])])
        raise StageError(
            f"{len(long)} prompts do not fit the context of {context}:\n    {shown}",
            hint="Ask shorter questions, or convert with a larger context (convert.context).",
        )


def _is_low(found: dict[str, Any], bound: float | None) -> bool:
    return bound is not None and bool(found["fp32"]) and float(found["retention_low"]) < bound


def _parity(parts: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """The runtime against torch with the shipped weights. top1: the share of its answer tokens that torch would have
    chosen; error: of the logits, given the runtime's visual tokens; features_error: of the visual tokens; both root
    mean square over their spread."""
    total = sum(sum(part["counts"]) for part in parts)
    return {
        "top1": sum(part["same"] for part in parts) / total,
        "tokens": total,
        "error": _summed(part["runtime"] for part in parts).relative(),
        "features_error": _summed(part["features"] for part in parts).relative(),
    }


def _fidelity(parts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The shipped files against the checkpoint that was quantized. kl: KL(checkpoint || files), nats a token of the
    answers; kl_high: and two standard errors of it, over questions; agreement: the share of tokens that the checkpoint
    would have chosen; prompts: the share of questions that become the same tokens; pixels: the largest difference of a
    prepared image's values."""
    counts = np.array([count for part in parts for count in part["counts"]], np.float64)
    sums = np.array([kl for part in parts for kl in part["kl"]], np.float64)
    kl = sums.sum() / counts.sum()
    error = np.sqrt(np.square(sums - kl * counts).sum()) / counts.sum()
    return {
        "kl": float(kl),
        "kl_high": float(kl + 2 * error),
        "agreement": sum(part["agreed"] for part in parts) / float(counts.sum()),
        "prompts": sum(part["prompts"] for part in parts) / len(counts),
        "pixels": max(part["pixels"] for part in parts),
    }


def _summed(sums: Any) -> Difference:
    found = np.sum([*sums], axis=0)
    return Difference([float(found[0]), float(found[1])])


def _write_flips(out: Path, questions: Questions, before: Sequence[Answer], after: Sequence[Answer]) -> None:
    """flips.jsonl: the questions whose score changed, the largest changes first, FLIPS of them with their images."""
    changed = [index for index in range(len(after)) if before[index].score != after[index].score]
    changed.sort(key=lambda index: (after[index].score - before[index].score, index))  # what was lost comes first
    lines = []
    (out / "flips").mkdir()
    for number, index in enumerate(changed):
        image = f"flips/{number:04}.png" if number < FLIPS else None
        if image:
            picture = Image.fromarray(questions[index].image)
            picture.thumbnail((_WIDTH, _WIDTH))
            picture.save(out / image, "PNG", optimize=False)
        said, old = after[index], before[index]
        lines.append(
            {
                "task": said.task,
                "question": said.question,
                "expected": said.expected,
                "before": old.answer,
                "after": said.answer,
                "score_before": old.score,
                "score_after": said.score,
                "image": image,
            }
        )
    text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
    (out / "flips.jsonl").write_text(text, encoding="utf-8")
    if not changed:
        (out / "flips").rmdir()
