"""A folder of one's own: what is wrong with it is said with its lines, all at once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError, StageError
from stages.checks import questions
from stages.data.dataset import SHAPE, SIDE
from stages.data.example import Questions
from stages.data.held_out import examples_of
from stages.data.lines import read_lines
from tests.conf import group
from tests.own import LINE, TASKS, config_of, refusal, save_images, without, write


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """Images of all sorts; no questions yet."""
    shutil.copytree(images, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "own"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("images")
    save_images(parent)
    return parent


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
    """A missing image, a bad line, an unknown task, an empty answer; and an image that is cut, found by reading it."""
    cut, missing = without(image="cut.jpg"), without(image="b.png")
    write(folder, cut, LINE, "{", without(task="vqo"), LINE, missing, without(answer=""))
    listed = refusal(folder).split("\n    ")[1:]
    assert [each.partition(":")[0] for each in listed] == ["line 1", "line 3", "line 4", "line 6", "line 7"]


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
