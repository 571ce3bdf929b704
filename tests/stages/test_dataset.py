"""A folder of one's own: what is wrong with it is said with its lines, all at once; what is right is read as it is."""

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import unicodedata
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import ConfigError, StageError
from stages.checks import questions
from stages.data.dataset import SHAPE, SIDE
from stages.data.example import Questions
from stages.data.image import preprocess
from stages.data.lines import read_lines
from stages.data.source import examples_of
from stages.schema import QuestionsConfig
from tests.conf import group

PROJECT = Path(__file__).parents[2]
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


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """Images of all sorts; no questions yet."""
    shutil.copytree(images, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "own"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("images")
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
    noise = Image.effect_noise((200, 200), 60).convert("RGB")
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
    return parent


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


# What stands in line 3 of 5, the others being sound, and what is said of it.
BAD: list[tuple[Any, list[str]]] = [
    (without(image="b.png"), ["image b.png is missing; did you mean 'a.png'?"]),
    (without(image="nowhere/b.png"), ["image nowhere/b.png is missing"]),
    (without(image="more"), ["image more is a folder; expected a file"]),
    (without(image="../outside.png"), ["image ../outside.png lies outside the folder"]),
    (without(image="../nothing.png"), ["image ../nothing.png lies outside the folder"]),
    (without(image="escape.png"), ["image escape.png lies outside the folder (by .. or by a link)"]),
    (without(image="circle.png"), ["image circle.png is no name of a file"]),
    (without(image="/etc/hostname"), ["image /etc/hostname is an absolute path"]),
    (without(image="a" * 300), ["is no name of a file: File name too long"]),
    (without(image="a\0.png"), ["is no name of a file"]),
    (without(image="\u00e9.png"), ["is missing; a file has this name in another Unicode form"]),
    (without(image="text.png"), ["image text.png cannot be read: it is none of its kinds; expected PNG, JPEG"]),
    (without(image="empty.png"), ["image empty.png cannot be read"]),
    (without(image="cut.jpg"), ["image cut.jpg cannot be read: image file is truncated"]),
    (without(image="cut.png"), ["image cut.png cannot be read"]),
    (without(image="damaged.png"), ["image damaged.png cannot be read"]),
    (without(image="wide.png"), [f"image wide.png is {SIDE + 1} x 2 pixels; expected {SIDE} at most"]),
    (without(image="tall.png"), [f"is 2 x {2 * SHAPE + 1} pixels; expected at most {SHAPE} times as long as wide"]),
    (without(image="bomb.png"), ["image bomb.png has too many pixels: Image size (96000000 pixels) exceeds limit"]),
    (without(image="float.tif"), ["image float.tif has pixels of mode F; expected 8 or 16 bits a colour"]),
    (without(image="thirtytwo.tif"), ["has pixels of mode I"]),
    (without(image="moving.gif"), ["image moving.gif holds 2 pictures; expected one"]),
    ('{"image": "a.png", "question" "x"}', ["not JSON at column 31: Expecting ':' delimiter"]),
    ('{"image": "a.png"', ["not JSON at column 18"]),
    ("what is it?", ["not JSON at column 1"]),
    ('{"image": "a.png"} {}', ["not JSON at column 20: Extra data"]),
    ('{"id": NaN}', ["not JSON: NaN is no value"]),
    ("[" * 100_000, ["not JSON that can be read"]),
    ('{"id": ' + "9" * 5000 + "}", ["not JSON that can be read"]),
    ("", ["it is blank; expected an object, or the end of the file"]),
    ("  ", ["it is blank"]),
    (b"\xef\xbb\xbf", ["not JSON at column 1"]),
    (b'{"image": "caf\xe9.png"}', ["not UTF-8: byte 0xe9 at byte 15"]),
    ('["a.png", "what?"]', ['found a list, ["a.png", "what?"]; expected an object']),
    ("null", ["found null, null; expected an object"]),
    ('{"task": "vqa", "task": "text"}', ['the key "task" is there twice']),
    (without("question"), ["there is no 'question'"]),
    (without("answer"), ["there is no 'answer' and no 'answers'; expected one of them"]),
    (without("answer", anwser="a star"), ["unknown key \"anwser\"; did you mean 'answer'?"]),
    (without(colour="red"), ['unknown key "colour"; keys: image, question, answer']),
    (without(answers=["a star"]), ["both 'answer' and 'answers' are there"]),
    (without("answer", answers=[]), ["'answers' is an empty list; expected a list of one text or more"]),
    (without("answer", answers="a star"), ["'answers' is text, \"a star\"; expected a list"]),
    (
        without("answer", answers=["a star", " ", 7]),
        ["number 2 of 'answers' is blank", "number 3 of 'answers' is a num"],
    ),
    (without(answer=""), ["'answer' is empty; expected text"]),
    (without(answer=" \t"), ["'answer' is blank"]),
    (without(answer=7), ["'answer' is a number, 7; expected text"]),
    (without(answer=None), ["'answer' is null, null; expected text"]),
    (without(answer="a \ud800 star"), ["'answer' is text with half a surrogate pair"]),
    (without(question=""), ["'question' is empty"]),
    (without(question={"text": "what?"}), ["'question' is an object"]),
    (without(image=True), ["'image' is a boolean, true"]),
    (without(task="vqaa"), ["unknown task \"vqaa\"; did you mean 'vqa'? (questions.tasks lists them)"]),
    (without(task="zzz"), ['unknown task "zzz"; tasks: vqa, text, document, reading, caption']),
    (without(task=3), ["'task' is a number, 3"]),
    (without(id="first"), ['id "first" is that of line 1; expected each once']),
    (without(id=[1]), ["'id' is a list, [1]; expected text or a whole number"]),
    (without(id=1.5), ["'id' is a number, 1.5"]),
    (without(task="caption", answer="!!!"), ["the answer '!!!' has no word"]),
    (
        {"image": "b.png", "question": "", "answer": 3, "task": "?"},
        ["image b.png is missing", "'question' is empty", "'answer' is a number", 'unknown task "?"'],
    ),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_what_is_wrong_is_said_with_its_line(line: Any, said: list[str], folder: Path) -> None:
    write(folder, LINE | {"id": "first"}, LINE, line, LINE, LINE)
    message = refusal(folder)
    first, *listed = message.split("\n    ")
    assert first == f"{folder}/questions.jsonl: {len(said)} problem{'s' * (len(said) > 1)} in 5 lines"
    assert len(listed) == len(said) and all(each.startswith("line 3: ") for each in listed), message
    assert all(any(part in each for each in listed) for part in said), message


def test_all_problems_are_told_at_once_in_order(folder: Path) -> None:
    """The four of the acceptance, and an image that is found to be cut only when it is read to its end."""
    write(
        folder,
        LINE,
        without(image="b.png"),
        "{",
        LINE,
        without(task="vqo"),
        without(answer=""),
        without(image="cut.jpg"),
    )
    listed = refusal(folder).split("\n    ")[1:]
    assert [each.partition(":")[0] for each in listed] == ["line 2", "line 3", "line 5", "line 6", "line 7"]


def test_of_many_problems_20_are_listed_and_the_others_counted(folder: Path) -> None:
    write(folder, *[without(image=f"{number}.png") for number in range(1, 24)], without(image="1.png"))
    first, *listed = refusal(folder).split("\n    ")
    assert first.endswith("24 problems in 24 lines")
    assert len(listed) == 21 and listed[-1] == "and 4 more"
    assert [each.partition(":")[0] for each in listed[:20]] == [f"line {number}" for number in range(1, 21)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: the file is empty"),
        (b"\n\r\n  \n", "line 1: the file is empty"),
        (b"\xef\xbb\xbf\n", "line 1: the file is empty"),
        (json.dumps(LINE).encode("utf-16"), "line 1: the file is UTF-16; save it as UTF-8"),
    ],
)
def test_a_file_of_nothing_is_refused(content: bytes, said: str, folder: Path) -> None:
    (folder / "questions.jsonl").write_bytes(content)
    assert said in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        "{0}\n{1}\n",
        "{0}\n{1}",
        "{0}\r\n{1}\r\n",
        "\ufeff{0}\n{1}\n",
        "\ufeff{0}\r\n{1}\r\n\r\n",
        "{0}\n{1}\n\n  \n",
        "  {0}  \n\t{1}\n",
    ],
)
def test_encodings_and_ends_of_lines(content: str, folder: Path) -> None:
    """U+2028 ends no line of JSON; escapes are what they stand for."""
    second = LINE | {"question": "wie groß?\u2028 \U0001f600", "answer": "\u00e9t\u00e9"}
    text = content.replace("{0}", json.dumps(LINE)).replace("{1}", json.dumps(second, ensure_ascii=False))
    (folder / "questions.jsonl").write_bytes(text.encode())
    examples = examples_of(config_of(folder))
    assert [(each.question, each.answers, each.where) for each in examples] == [
        (LINE["question"], (LINE["answer"],), "questions.jsonl, line 1"),
        (second["question"], (second["answer"],), "questions.jsonl, line 2"),
    ]


def test_examples_are_what_the_lines_say(folder: Path) -> None:
    write(
        folder,
        LINE,
        {"image": "more/b.jpg", "question": "read it", "answers": ["1.50", "1,50"], "task": "reading", "id": 7},
        {"image": "more/../link.png", "question": "?", "answer": "x", "task": "document", "id": "8"},
    )
    first, second, third = examples_of(config_of(folder))
    assert (first.answer, first.metric, first.task) == ("a star", "exact", "vqa")
    assert (second.answer, second.answers, second.metric) == ("1.50", ("1.50", "1,50"), "cer")
    assert first.image_id == third.image_id != second.image_id
    assert np.array_equal(first.image, np.asarray(picture())) and np.array_equal(third.image, first.image)
    again = pickle.loads(pickle.dumps(second))
    assert again == second and np.array_equal(again.image, second.image)


def saved(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """The picture in a mode or an encoding; what it should be read as."""
    image, path, expected = picture(), folder / name, np.asarray(picture())
    match name:
        case "grey.png":
            image.convert("L").save(path)
            expected = np.asarray(image.convert("L").convert("RGB"))
        case "grey16.png":
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
            expected = np.asarray(image.convert("L").convert("RGB"))
        case "grey16.tif":
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
            expected = np.asarray(image.convert("L").convert("RGB"))
        case "palette.png":
            image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path)
        case "alpha.png" | "alpha.webp":
            clear = image.convert("RGBA")
            clear.putalpha(0)
            clear.save(path, lossless=True)
            expected = np.full_like(expected, 255)
        case "cmyk.tif":
            image.convert("CMYK").save(path)
        case "turned.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=100, subsampling=0)
        case "two.mpo":
            image.save(path, save_all=True, append_images=[image], quality=100, subsampling=0)
        case "bits.png":
            image.convert("1").save(path)
            expected = np.asarray(image.convert("1").convert("RGB"))
        case _:
            options = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {"lossless": True}
            image.save(path, **options if not name.endswith(("bmp", "ppm", "gif", "tif")) else {})
    return expected


KINDS = ["grey.png", "grey16.png", "grey16.tif", "palette.png", "bits.png", "alpha.png", "alpha.webp", "cmyk.tif"]
KINDS += ["turned.jpg", "two.mpo", "plain.jpg", "plain.webp", "plain.bmp", "plain.ppm", "plain.tif", "plain.gif"]


@pytest.mark.parametrize("name", KINDS)
def test_images_of_all_kinds_are_read_as_rgb(name: str, folder: Path) -> None:
    expected = saved(folder, name)
    (example,) = examples_of(config_of(write(folder, without(image=name))))
    image = example.image
    assert image.dtype == np.uint8 and image.shape == (10, 20, 3)
    assert np.abs(image.astype(int) - expected).max() <= 6
    settings = {"image_size": 8, "mean": [0, 0, 0], "std": [1, 1, 1], "aspect": "pad"}
    assert np.array_equal(preprocess(image, settings), preprocess(example.picture, settings))


def test_an_image_that_changed_after_the_check_is_named_with_its_line(folder: Path) -> None:
    (_, example) = examples_of(config_of(write(folder, LINE, without(image="more/b.jpg"))))
    (folder / "more" / "b.jpg").write_bytes(b"")
    with pytest.raises(StageError, match=r"questions\.jsonl, line 2: .*b\.jpg cannot be read"):
        _ = example.image


def test_images_are_read_to_their_end_only_where_they_are_asked_about(folder: Path) -> None:
    write(folder, *[without(image=image, question=f"{n}?") for n, image in enumerate(["a.png", "cut.jpg"])])
    assert "line 2: image cut.jpg cannot be read" in refusal(folder)
    assert len(examples_of(config_of(folder), decode=False)) == 2
    seeds = [seed for seed in range(20) if _drawn_images(folder, seed) == ["a.png"]]
    assert 0 < len(seeds) < 20
    assert len(examples_of(config_of(folder, 1, seed=seeds[0]))) == 1


def _drawn_images(folder: Path, seed: int) -> list[str]:
    return [Path(str(each.picture)).name for each in examples_of(config_of(folder, 1, seed=seed), decode=False)]


def many(count: int) -> list[dict[str, Any]]:
    tasks = ["vqa", "text", "vqa", "reading"]
    return [without(question=f"{number}?", task=tasks[number % 4]) for number in range(count)]


def asked(folder: Path, per_task: int | None, seed: int = 1) -> list[str]:
    return [each.question for each in examples_of(config_of(folder, per_task, seed=seed))]


def test_a_subset_is_seeded_in_the_file_s_order_and_even_over_tasks(folder: Path) -> None:
    lines = many(200)
    write(folder, *lines)
    everything = [line["question"] for line in lines]
    assert asked(folder, None) == everything
    few = asked(folder, 10)
    assert few == asked(folder, 10) == [each for each in everything if each in few]
    assert few != asked(folder, 10, seed=2)
    assert set(few) < set(asked(folder, 11)) <= set(everything)
    drawn = examples_of(config_of(folder, 60, seed=1))
    assert Counter(each.task for each in drawn) == {"vqa": 60, "text": 50, "reading": 50}
    assert len(drawn.corpus) == 200 and drawn[3] in drawn[3:5]


def test_a_subset_does_not_depend_on_other_lines(folder: Path) -> None:
    """With a line more, at most that one is new; whatever the order, the same are drawn."""
    lines = many(100)
    before = set(asked(write(folder, *lines), 10))
    assert set(asked(write(folder, *reversed(lines)), 10)) == before
    new = without(question="new?")
    assert len(set(asked(write(folder, new, *lines), 10)) - before) <= 1


def test_each_line_is_drawn_about_as_often(folder: Path) -> None:
    write(folder, *[without(question=f"{number}?") for number in range(20)])
    drawn = Counter(question for seed in range(200) for question in asked(folder, 5, seed))
    assert len(drawn) == 20 and all(25 <= count <= 80 for count in drawn.values())  # 50 expected, deviation 6


def test_no_decoded_image_is_kept(folder: Path) -> None:
    for number in range(8):
        picture(100, 100).save(folder / f"{number}.png")
    examples = examples_of(config_of(write(folder, *[without(image=f"{number}.png") for number in range(8)])))
    seen = []
    for example in examples:
        seen.append(weakref.ref(example.image))
        gc.collect()
        assert sum(each() is not None for each in seen) <= 1
    assert examples[0].image is not examples[0].image


def test_photos_take_no_more_memory_than_one(folder: Path) -> None:
    """In a process of its own: 12 of 36 MB each, checked and then looked at, cost less than 5 together."""
    for number in range(12):
        Image.new("RGB", (4000, 3000), (number, 20, 30)).save(folder / f"{number}.jpg")
    write(folder, *[without(image=f"{number}.jpg") for number in range(12)])
    script = f"""
import resource
from stages.data.source import examples_of
from stages.schema import QuestionsConfig
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = 0
for example in examples_of(QuestionsConfig({str(folder)!r}, None, 1, {TASKS!r})):
    total += example.image.shape[0]
assert total == 12 * 3000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5 * 36_000, done.stdout


def test_captions_that_cannot_be_told_apart_are_refused(folder: Path) -> None:
    """CIDEr would give 0 to every answer."""
    caption = without(task="caption", answer="a red star")
    assert "line 2: CIDEr counts what sets a caption apart" in refusal(write(folder, LINE, caption))
    message = refusal(write(folder, caption, caption | {"answer": "A red star."}))
    assert (
        "each word of this one is in all 2 lines of task caption" in message
        and "questions.tasks.caption=anls" in message
    )
    assert len(examples_of(config_of(write(folder, caption, caption | {"answer": "a blue ring"})))) == 2
    assert len(examples_of(config_of(write(folder, caption), tasks={"caption": "anls"}))) == 1


def test_a_task_of_one_s_own_has_its_metric(folder: Path) -> None:
    config = config_of(write(folder, without(task="receipts")), tasks={"receipts": "cer"})
    questions(config)
    assert [each.metric for each in examples_of(config)] == ["cer"]


def test_without_a_path_the_procedural_questions_are_asked() -> None:
    examples = examples_of(config_of(None, 2))
    assert isinstance(examples, Questions) and len(examples) == 18 == len(examples.corpus)
    assert all(each.where == "" and each.answers == (each.answer,) for each in examples)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
KEY = st.sampled_from(["image", "question", "answer", "answers", "task", "id"]) | st.text(max_size=9)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@given(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=5), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_back_as_it_was(pairs: list[tuple[str, list[str]]], escaped: bool) -> None:
    lines = [{"image": "a.png", "question": question, "answers": said, "task": "text"} for question, said in pairs]
    content = "\r\n".join(json.dumps(line, ensure_ascii=escaped) for line in lines).encode()
    found = read_lines(content, TASKS)
    assert found.problems == [] and found.count == len(pairs)
    assert [(each.question, list(each.answers)) for each in found.lines] == pairs


@given(st.lists(st.dictionaries(KEY, VALUE, max_size=6) | VALUE, min_size=1, max_size=4))
def test_any_json_is_read_or_refused_with_its_line(values: list[Any]) -> None:
    found = read_lines("\n".join(json.dumps(value) for value in values).encode(), TASKS)
    told = {each.number for each in found.lines} | {each.line for each in found.problems}
    assert told == set(range(1, len(values) + 1))
    assert not {each.number for each in found.lines} & {each.line for each in found.problems}


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    found = read_lines(content, TASKS)
    assert found.problems or found.lines
    assert all("\n" not in each.text for each in found.problems)


def test_a_folder_without_questions_is_refused_before_anything_runs(folder: Path) -> None:
    (folder / "question.jsonl").touch()
    for path, said in (
        (folder, "holds no questions.jsonl\n  found question.jsonl"),
        (folder / "a.png", "a.png is not a folder"),
        (folder.parent / "owm", "did you mean 'own'?"),
        ("s3://bucket/questions", "expected a folder on this machine"),
    ):
        with pytest.raises(ConfigError) as error:
            questions(config_of(path))
        assert said in str(error.value)
    (folder.parent / "tracked.dvc").touch()
    with pytest.raises(ConfigError, match="dvc pull"):
        questions(config_of(folder.parent / "tracked"))
    questions(config_of(write(folder, LINE)))
    questions(config_of("not/here/but/of/the/project"))
    with pytest.raises(StageError, match=r"questions\.jsonl cannot be read: No such file"):
        examples_of(config_of(folder.parent / "owm"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"per_task": None}, "questions.per_task is null, and the procedural questions have no end"),
        ({"tasks": {"receipts": "cr"}}, "questions.tasks.receipts is 'cr'\n  did you mean 'cer'?"),
        ({"tasks": {"till receipts": "cer"}}, "'till receipts' cannot be the name of a task"),
        ({"tasks": {"": "cer"}}, "'' cannot be the name of a task"),
        ({"tasks": {"overall": "cer"}}, "and not 'overall', which is all of them"),
    ],
)
def test_what_the_configuration_may_not_say(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        questions(group("questions", "default", **changes))
    assert said in str(error.value)


def test_unicode_forms_of_names_are_told_apart(folder: Path) -> None:
    name = unicodedata.normalize("NFD", "\u00e9.png")
    assert len(examples_of(config_of(write(folder, without(image=name))))) == 1
