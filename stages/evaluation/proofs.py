"""Questions that the shipped files answer right, one a task: what an installation can be asked before it is used."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from stages.data.example import Questions
from stages.evaluation.answers import Answer

_LARGEST = 256 << 10  # bytes of an image that travels with every bundle


def write_proofs(out: Path, questions: Questions, answers: Sequence[Answer]) -> None:
    """Write proofs.jsonl and proofs/*.png: of each task the first question with a full score and a small image."""
    found: dict[str, dict[str, Any]] = {}
    for index, said in enumerate(answers):
        if said.task in found or said.score < 1.0 or not said.answer:
            continue
        file = io.BytesIO()
        Image.fromarray(questions[index].image).save(file, "PNG", optimize=False)
        if len(file.getvalue()) <= _LARGEST:
            image = f"proofs/{len(found)}.png"
            (out / "proofs").mkdir(exist_ok=True)
            (out / image).write_bytes(file.getvalue())
            found[said.task] = {"task": said.task, "image": image, "question": said.question, "answer": said.answer}
    lines = [json.dumps(each, ensure_ascii=False, sort_keys=True) + "\n" for each in found.values()]
    (out / "proofs.jsonl").write_text("".join(lines), encoding="utf-8")
