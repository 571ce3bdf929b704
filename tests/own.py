"""A folder of one's own, with images of all sorts and what questions.jsonl is told to say."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import StageError
from stages.data.dataset import SHAPE, SIDE
from stages.data.held_out import examples_of
from stages.schema import QuestionsConfig
from tests.conf import group

LINE = {"image": "a.png", "question": "what is it?", "answer": "a star", "task": "vqa"}
TASKS = group("questions", "default").tasks


def config_of(path: Path | str | None, per_task: int | None = None, **changes: Any) -> QuestionsConfig:
    config = group("questions", "default", path=str(path) if path else None, per_task=per_task, **changes)
    assert isinstance(config, QuestionsConfig)
    return config


def picture(width: int = 20, height: int = 10) -> Image.Image:
    """Each pixel its own colour, left half red."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    return Image.fromarray(pixels)


def save_images(parent: Path) -> None:
    """parent/own, a folder of images of all sorts, most of them not to be taken; and an image beside it."""
    own = parent / "own"
    (own / "more").mkdir(parents=True)
    picture().save(own / "a.png")
    picture().save(own / "more" / "b.jpg")
    picture().save(parent / "outside.png")
    (own / "link.png").symlink_to("a.png")
    (own / "escape.png").symlink_to("../outside.png")
    (own / "circle.png").symlink_to("circle.png")
    (own / "text.png").write_text("no image")
    (own / "empty.png").touch()
    noise = Image.fromarray(np.random.RandomState(1).randint(0, 256, (200, 200, 3), np.uint8))
    for name, format in (("cut.jpg", "JPEG"), ("cut.png", "PNG")):
        noise.save(own / name, format)
        os.truncate(own / name, (own / name).stat().st_size // 2)
    noise.save(own / "damaged.png")
    damaged = bytearray((own / "damaged.png").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (own / "damaged.png").write_bytes(damaged)
    Image.new("1", (SIDE + 1, 2)).save(own / "wide.png")
    Image.new("1", (2, 2 * SHAPE + 1)).save(own / "tall.png")
    Image.new("1", (12_000, 8_000)).save(own / "bomb.png")
    Image.new("F", (4, 4)).save(own / "float.tif")
    Image.new("I", (4, 4)).save(own / "thirtytwo.tif")
    picture().save(own / "moving.gif", save_all=True, append_images=[picture(20, 10).rotate(180)])
    (own / "e\N{COMBINING ACUTE ACCENT}.png").write_bytes((own / "a.png").read_bytes())


def write(folder: Path, *lines: Any, end: str = "\n") -> Path:
    """questions.jsonl of objects, or of text or bytes that stand as they are."""
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    (folder / "questions.jsonl").write_bytes(end.encode().join(raw) + end.encode())
    return folder


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(StageError) as error:
        examples_of(config_of(folder, **changes))
    assert error.value.hint
    return error.value.message


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in LINE.items() if key not in keys} | changes
