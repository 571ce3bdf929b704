"""The questions that were asked, kept with their images: what every device's files are asked too.

    asked = read_asked(baseline.path)
    print(len(asked), asked[0].question, asked[0].image.shape)

questions.jsonl has a line a question, and after them those that were not drawn, which captions are scored by too;
images.safetensors each image once, encoded: PNG of what was drawn, or the file that the user gave.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.data.example import Example, Questions
from stages.data.image import to_rgb
from stages.tensorfile import TensorReader, TensorWriter

LINES, IMAGES = "questions.jsonl", "images.safetensors"


@dataclass(frozen=True)
class Question(Example):
    """picture: the bytes of an image's file, mapped."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, upright and opaque; decoded each time that it is asked for."""
        return np.asarray(to_rgb(Image.open(io.BytesIO(self.encoded))))

    @property
    def encoded(self) -> bytes:
        """The image as a PNG, or in the user's own format."""
        return bytes(np.asarray(self.picture))


def write_asked(folder: Path, questions: Questions) -> None:
    """Write both files."""
    asked = [json.dumps(_line(example, True), ensure_ascii=False, sort_keys=True) for example in questions]
    drawn = {id(example) for example in questions}
    others = [
        json.dumps(_line(example, False), ensure_ascii=False, sort_keys=True)
        for example in questions.corpus
        if id(example) not in drawn
    ]
    (folder / LINES).write_text("".join(line + "\n" for line in [*asked, *others]), encoding="utf-8")
    with TensorWriter(folder / IMAGES) as writer:
        for image, example in {example.image_id: example for example in questions}.items():
            writer.add(str(image), np.frombuffer(encoded(example), np.uint8))


def read_asked(folder: Path) -> Questions:
    """What write_asked left in the folder."""
    images = TensorReader(folder / IMAGES)
    asked, others = list[Example](), list[Example]()
    for line in (folder / LINES).read_text(encoding="utf-8").split("\n")[:-1]:
        value = json.loads(line)
        picture = images.array(str(value["image"])) if value["asked"] else np.zeros(0, np.uint8)
        answers = tuple(value["answers"])
        rest = value["task"], value["image"], value["metric"], value["where"]
        example = Question(picture, value["question"], answers, *rest)
        (asked if value["asked"] else others).append(example)
    return Questions(asked, [*asked, *others])


def join_asked(folder: Path, parts: Sequence[Path]) -> None:
    """Write into folder what write_asked left in each of `parts`, one behind the other. No image may be in two."""
    text = "".join((part / LINES).read_text(encoding="utf-8") for part in parts)
    (folder / LINES).write_text(text, encoding="utf-8")
    with TensorWriter(folder / IMAGES) as writer:
        for images in (TensorReader(part / IMAGES) for part in parts):
            for name in images.entries:
                writer.add(name, images.array(name))


def encoded(example: Example) -> bytes:
    """The image's file as it was given, or a PNG of what was drawn."""
    if isinstance(example, Question):
        return example.encoded
    if isinstance(example.picture, Path):
        return example.picture.read_bytes()
    file = io.BytesIO()
    Image.fromarray(example.picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _line(example: Example, asked: bool) -> dict[str, Any]:
    return {
        "asked": asked,
        "task": example.task,
        "metric": example.metric,
        "question": example.question,
        "answers": list(example.answers),
        "image": example.image_id,
        "where": example.where.rpartition("/")[2],  # no path of the machine
    }
