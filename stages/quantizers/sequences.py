"""What a calibration runs the model on: your own questions and text, the procedural questions, or drawn token numbers.

A folder of your own (calibrate.path) holds any of

    questions.jsonl    a line each: {"image": "a.png", "question": "...", "answer": "..."}, images beside it; of a
                       model without a tower, no "image"
    text.jsonl         a line each: {"text": "..."}
    *.txt              plain text
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageError, nearest
from stages.artifacts import Checkpoint
from stages.data.image import to_rgb
from stages.data.prompt import PromptFormat
from stages.data.source import question_source
from stages.quantizers.examples import Sample, prompts_of, sample_of
from stages.schema import CalibrateConfig, Draw

QUESTIONS, TEXT, PLAIN = "questions.jsonl", "text.jsonl", "*.txt"


def samples_of(checkpoint: Checkpoint, config: CalibrateConfig) -> list[Sample]:
    """config.samples sequences, the same every time; of a folder that holds fewer, all. Those with images come first.

    Raises StageError for a folder or a line that is not as described, with its number, and where there is nothing.
    """
    prompts = prompts_of(checkpoint)
    if config.path is not None:
        found = _own(prompts, Path(config.path), config)
    elif config.draw is Draw.tokens:
        found = _drawn(checkpoint, prompts, config)
    else:
        found = _questions(checkpoint, prompts, config)
    if not found:
        raise StageError("the calibration set is empty", hint="Set calibrate.samples to 1 or more; 512 is usual.")
    return sorted(found, key=lambda sample: sample.image is None)


def _questions(checkpoint: Checkpoint, prompts: PromptFormat, config: CalibrateConfig) -> list[Sample]:
    examples = question_source().examples("calibration", config.samples, config.seed)
    seen = checkpoint.config().vision is not None
    return [sample_of(prompts, each.question, each.answer, each.image if seen else None) for each in examples]


def _drawn(checkpoint: Checkpoint, prompts: PromptFormat, config: CalibrateConfig) -> list[Sample]:
    """Each token of the tokenizer's vocabulary as likely as another; of a model with a tower, behind a drawn image."""
    random = np.random.Generator(np.random.PCG64(config.seed))
    model = checkpoint.config()
    assert model.text is not None
    known = np.arange(min(prompts.tokenizer.get_vocab_size(), model.text.vocab_size))
    if model.image_token_id is not None:
        known = known[known != model.image_token_id]
    images: list[NDArray[np.uint8]] | list[None] = [None] * config.samples
    place: list[int] = []
    if model.vision is not None and model.image_token_id is not None:
        examples = question_source().examples("calibration", config.samples, config.seed)
        images, place = [each.image for each in examples], [model.image_token_id] * model.vision.tokens
    return [
        Sample([*place, *random.choice(known, config.tokens).tolist()], max(len(place), 1), image) for image in images
    ]


def _own(prompts: PromptFormat, folder: Path, config: CalibrateConfig) -> list[Sample]:
    """What the folder holds, of which config.samples are drawn without putting back."""
    if not folder.is_dir():
        raise StageError(f"calibrate.path: there is no folder {folder}", hint="Expected a folder of your own data.")
    found = [*_own_questions(prompts, folder), *_own_text(prompts, folder, config.tokens)]
    if not found:
        raise StageError(
            f"calibrate.path: {folder} holds no sequence for the model",
            hint=f"Expected {QUESTIONS}, {TEXT} or {PLAIN}, with at least one line.",
        )
    random = np.random.Generator(np.random.PCG64(config.seed))
    chosen = sorted(random.permutation(len(found))[: config.samples].tolist())
    return [found[index] for index in chosen]


def _own_questions(prompts: PromptFormat, folder: Path) -> Iterator[Sample]:
    with_image = prompts.image_token_id is not None and prompts.image_tokens > 0
    keys = ("image", "question", "answer") if with_image else ("question", "answer")
    for where, line in _lines(folder / QUESTIONS):
        question, answer = (_text(line, key, where, keys) for key in keys[-2:])
        image = None
        if with_image:
            image = folder / _text(line, "image", where, keys)
            if not image.is_file():
                beside = [path.name for path in image.parent.iterdir()] if image.parent.is_dir() else []
                hint = nearest(image.name, beside) or f"Images are found from {folder}."
                raise StageError(f"{where}: there is no image {line['image']}", hint=hint)
            _checked(image, where)
        try:
            yield sample_of(prompts, question, answer, image)
        except StageError as error:
            raise StageError(f"{where}: {error.message}", hint=error.hint) from None


def _checked(image: Path, where: str) -> None:
    try:
        to_rgb(image)
    except StageError as error:
        raise StageError(f"{where}: {error.message}", hint=error.hint) from None


def _own_text(prompts: PromptFormat, folder: Path, length: int) -> Iterator[Sample]:
    """All text in one row, an end token behind each piece, cut into `length` tokens; every token is to be said."""
    ids: list[int] = []
    for text in _texts(folder):
        ids += [*prompts.tokenizer.encode(text, add_special_tokens=False).ids, prompts.end_id]
    if prompts.image_token_id is not None and prompts.image_token_id in ids:
        raise StageError(
            f"calibrate.path: the text in {folder} holds the image token",
            hint=f"Leave it out; questions with images belong into {QUESTIONS}.",
        )
    for start in range(0, len(ids) if len(ids) <= length else len(ids) // length * length, length):
        yield Sample(ids[start : start + length], 1, None)


def _texts(folder: Path) -> Iterator[str]:
    for where, line in _lines(folder / TEXT):
        yield _text(line, "text", where, ("text",))
    for path in sorted(folder.glob(PLAIN)):
        if text := _read(path).strip():
            yield text


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's object with where it stands; blank lines are passed over, and a file may be missing."""
    if not path.is_file():
        return
    for number, text in enumerate(_read(path).split("\n"), 1):
        if not text.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            line = json.loads(text)
        except ValueError as cause:
            raise StageError(f"{where}: no JSON: {cause}", hint="Expected one object a line.") from cause
        if not isinstance(line, dict):
            raise StageError(f"{where}: {text[:40]!r} is no object", hint='Expected {"key": "value", ...}.')
        yield where, line


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise StageError(f"{path.name} is not UTF-8: {cause}", hint="Save it as UTF-8.") from cause


def _text(line: dict[str, Any], key: str, where: str, keys: tuple[str, ...]) -> str:
    value = line.get(key)
    if key not in line:
        hint = nearest(key, line) or f"Expected the keys {', '.join(keys)}."
        raise StageError(f"{where}: there is no '{key}'; found {', '.join(line) or 'nothing'}", hint=hint)
    if not isinstance(value, str) or not value.strip():
        raise StageError(f"{where}: '{key}' is {value!r}", hint="Expected text that is not empty.")
    return value
