"""Questions that are kept: what was asked is what is read again, with its images, texts and corpus."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.data.asked import IMAGES, LINES, encoded, join_asked, read_asked, write_asked
from stages.data.example import Example, Questions
from stages.data.held_out import examples_of
from stages.data.source import question_source
from stages.evaluation.answers import Answer, read_answers, write_answers
from stages.evaluation.names import TASKS
from stages.evaluation.scores import Scorer
from stages.schema import QuestionsConfig
from stages.tensorfile import TensorReader
from tests.conf import group

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ["a\u2028b", "\u2029", "a\x85b", "a\rb", "a\nb", '"', "\\", "\x0b\x0c\x1c", "\ufeff", "𝄞"]
)


def same(found: Sequence[Example], expected: Sequence[Example]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.question, one.answers, one.answer, one.task, one.image_id, one.metric) == (
            other.question,
            other.answers,
            other.answer,
            other.task,
            other.image_id,
            other.metric,
        )
        assert np.array_equal(one.image, other.image) and one.image.dtype == np.uint8


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (LINES, IMAGES)}


@pytest.fixture(scope="module")
def drawn() -> Questions:
    return examples_of(group("questions", "default", per_task=2))


def test_what_is_drawn_comes_back(drawn: Questions, tmp_path: Path) -> None:
    write_asked(tmp_path, drawn)
    found = read_asked(tmp_path)
    same(found, drawn)
    same(found.corpus, drawn.corpus)
    assert {Image.open(io.BytesIO(encoded(example))).format for example in found} == {"PNG"}


def test_what_was_read_is_written_in_the_same_bytes(drawn: Questions, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    write_asked(tmp_path / "first", drawn)
    write_asked(tmp_path / "second", drawn)
    write_asked(tmp_path / "third", read_asked(tmp_path / "first"))
    assert contents(tmp_path / "first") == contents(tmp_path / "second") == contents(tmp_path / "third")


def test_parts_joined_are_the_whole(drawn: Questions, tmp_path: Path) -> None:
    source, parts = question_source(), [tmp_path / task for task in TASKS]
    for task, part in zip(TASKS, parts, strict=True):
        part.mkdir()
        examples = source.of_task(task, 2, group("questions", "default").seed)
        write_asked(part, Questions(examples, examples))
    (tmp_path / "joined").mkdir()
    join_asked(tmp_path / "joined", parts)
    same(read_asked(tmp_path / "joined"), drawn)
    (tmp_path / "whole").mkdir()
    write_asked(tmp_path / "whole", drawn)
    assert contents(tmp_path / "joined") == contents(tmp_path / "whole")


FORMATS = {
    "photo.jpg": ("RGB", {"quality": 80}),
    "turned.jpg": ("RGB", {"exif": 6}),
    "grey.png": ("L", {}),
    "clear.png": ("RGBA", {}),
    "colours.png": ("P", {}),
    "web.webp": ("RGB", {}),
    "old.bmp": ("RGB", {}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one's own: an image in each format, of which two are asked about twice."""
    place = tmp_path / "mine"
    place.mkdir()
    random, lines = np.random.default_rng(0), []
    for name, (mode, options) in FORMATS.items():
        image = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).convert("RGB")
        if mode == "RGBA":
            image.putalpha(Image.fromarray(random.integers(0, 256, (24, 32), np.uint8)))
        else:
            image = image.convert(mode)
        if "exif" in options:
            exif = Image.Exif()
            exif[0x0112] = options["exif"]
            options = {"exif": exif}
        image.save(place / name, **options)
        lines.append({"image": name, "question": f"what is {name}?", "answers": ["a star"], "task": "own"})
    lines[1] |= {"question": "which\u2028line?", "answers": ["a\u2028b", "\x85 c"]}
    lines += [lines[0] | {"question": "and this?"}, lines[3] | {"question": "once more?"}]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (place / "questions.jsonl").write_text(text, encoding="utf-8")
    return place


def test_a_folder_of_files_comes_back_byte_by_byte(folder: Path, tmp_path: Path) -> None:
    questions = examples_of(QuestionsConfig(str(folder), None, 1, {"own": "exact"}))
    write_asked(tmp_path, questions)
    found = read_asked(tmp_path)
    same(found, questions)
    assert len(found) == len(FORMATS) + 2
    assert len(TensorReader(tmp_path / IMAGES).entries) == len(FORMATS)  # each image once
    files = {(folder / name).read_bytes() for name in FORMATS}
    assert {encoded(example) for example in found} == files
    for path in folder.iterdir():  # what is kept needs the folder no more
        path.unlink()
    assert found[1].image.shape == (32, 24, 3)  # upright
    assert found[1].question == "which\u2028line?" and found[1].answers == ("a\u2028b", "\x85 c")


def test_the_corpus_is_kept_so_that_captions_score_the_same(tmp_path: Path) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    words = ["a red star", "a blue ring on a red star", "two rings", "a star on a ring", "a green ring"]
    examples = [Example(picture, "describe", (text, f"{text}."), "own", 7, "cider") for text in words]
    questions = Questions([examples[3], examples[1]], examples)
    write_asked(tmp_path, questions)
    found = read_asked(tmp_path)
    same(found, questions)
    assert sorted(example.answers for example in found.corpus) == sorted(example.answers for example in examples)
    for index, text in ((0, "a star on a ring"), (1, "a blue star"), (0, "two green rings")):
        score = Scorer(found).score(index, text)
        assert score == pytest.approx(Scorer(questions).score(index, text), rel=1e-12)
        assert (
            score != pytest.approx(Scorer(Questions(list(questions), list(questions))).score(index, text)) or not score
        )
    (line,) = {json.loads(text)["image"] for text in (tmp_path / LINES).read_text(encoding="utf-8").splitlines()}
    assert line == 7 and list(TensorReader(tmp_path / IMAGES).entries) == ["7"]


@given(st.lists(st.tuples(TEXT, TEXT, TEXT, st.integers(0, 3)), min_size=1, max_size=6), st.integers(1, 6))
def test_any_text_comes_back(rows: list[tuple[str, str, str, int]], asked: int) -> None:
    import tempfile

    examples = [
        Example(np.full((2, 3, 3), image, np.uint8), question, (first, second), "own", image, "anls")
        for question, first, second, image in rows
    ]
    questions = Questions(examples[:asked], examples)
    answers = [Answer("own", question, first, second, 0.5, [image]) for question, first, second, image in rows]
    with tempfile.TemporaryDirectory() as folder:
        write_asked(Path(folder), questions)
        found = read_asked(Path(folder))
        same(found, questions)
        assert [each.answers for each in found.corpus] == [each.answers for each in examples]
        write_answers(Path(folder) / "answers.jsonl", answers)
        assert read_answers(Path(folder) / "answers.jsonl") == answers
