"""questions.jsonl, line by line: what each says, and all that is wrong with it. Light: the plan asks for it.

    {"image": "photos/1.jpg", "question": "what is sold here?", "answer": "bread", "task": "vqa"}
    {"image": "photos/1.jpg", "question": "describe the image", "answers": ["a shop", "a bakery"], "task": "caption"}

One object a line, in UTF-8. "answers" are several accepted ones; "id", if it is there, is a line's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, nearest

FILE = "questions.jsonl"
KEYS = ("image", "question", "answer", "answers", "task", "id")
_SHOWN = 60  # characters of what was found


@dataclass(frozen=True)
class Problem:
    """What is wrong on a line (from 1)."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass(frozen=True)
class Line:
    """What a sound line says. number: from 1. image: as it stands there. answers: one or more."""

    number: int
    image: str
    question: str
    answers: tuple[str, ...]
    task: str


@dataclass(frozen=True)
class Contents:
    """lines: the sound ones. images: (line, image) of all that name one, sound or not. count: of lines."""

    lines: list[Line]
    images: list[tuple[int, str]]
    problems: list[Problem]
    count: int


def check_dataset(path: str) -> None:
    """Raise ConfigError where questions.path is no folder here, or holds no questions.jsonl.

    A relative path is the project's, and this may run elsewhere: that such a one is missing, the plan says where it
    takes the files' digests (sources of the stage).
    """
    folder = Path(path)
    if "://" in path:
        raise ConfigError(
            f"questions.path is {path}; expected a folder on this machine", hint=f"copy it here, with its {FILE}"
        )
    if not folder.exists():
        if folder.with_name(folder.name + ".dvc").is_file():
            raise ConfigError(f"questions.path: the folder {path} is not here", hint=f"dvc pull {path}.dvc fetches it")
        if not folder.is_absolute():
            return
        beside = [each.name for each in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = f"{nearest(folder.name, beside)} expected a folder of images with {FILE}".strip()
        raise ConfigError(f"questions.path: the folder {path} is not there", hint=hint)
    if not folder.is_dir():
        raise ConfigError(f"questions.path: {path} is not a folder", hint=f"expected one of images with {FILE}")
    if not (folder / FILE).is_file():
        others = sorted(each.name for each in folder.iterdir() if each.suffix in (".jsonl", ".json", ".ndjson"))
        hint = (
            f"found {', '.join(others[:5])}; rename it, if those are the questions" if others else "one object a line"
        )
        raise ConfigError(f"questions.path: {path} holds no {FILE}", hint=hint)


def read_lines(content: bytes, tasks: Mapping[str, str]) -> Contents:
    """What questions.jsonl says, in order. tasks: known names.

    A byte order mark, CRLF and blank lines at the end are let pass. Images are not looked for.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Contents([], [], [Problem(1, "the file is UTF-16; save it as UTF-8")], 1)
    content = content.removeprefix(b"\xef\xbb\xbf").rstrip(b" \t\r\n")
    if not content:
        return Contents([], [], [Problem(1, "the file is empty; expected one object a line")], 0)
    raw = content.split(b"\n")
    found = Contents([], [], [], len(raw))
    ids: dict[str, int] = {}
    for number, text in enumerate(raw, 1):
        try:
            value = _object(text)
        except _Wrong as wrong:
            found.problems.append(Problem(number, str(wrong)))
            continue
        wrongs = list(_wrong_with(value, tasks))
        name = value.get("id")
        if isinstance(name, str | int) and (first := ids.setdefault(str(name), number)) != number:
            wrongs.append(f"id {_shown(name)} is that of line {first}; expected each once")
        if "image" in value and not _wrong_text(value["image"]):
            found.images.append((number, value["image"]))
        found.problems.extend(Problem(number, wrong) for wrong in wrongs)
        if not wrongs:
            answers = value["answers"] if "answers" in value else [value["answer"]]
            found.lines.append(Line(number, value["image"], value["question"], tuple(answers), value["task"]))
    return found


class _Wrong(Exception):
    """Why a line is no object."""


def _object(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as cause:
        raise _Wrong(
            f"not UTF-8: byte 0x{raw[cause.start]:02x} at byte {cause.start + 1}; save the file as UTF-8"
        ) from None
    if not text.strip():
        raise _Wrong("it is blank; expected an object, or the end of the file")
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except json.JSONDecodeError as cause:
        raise _Wrong(f"not JSON at column {cause.colno}: {cause.msg}; expected one object on the line") from None
    except (ValueError, RecursionError) as cause:  # a number of thousands of digits, or brackets in brackets
        raise _Wrong(f"not JSON that can be read: {str(cause)[:_SHOWN]}") from None
    if not isinstance(value, dict):
        raise _Wrong(f"found {_kind(value)}, {_shown(value)}; expected an object, " + '{"image": ..., "question": ...}')
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Wrong(f"the key {_shown(twice)} is there twice; expected it once")
    return found


def _no_number(name: str) -> Any:
    raise _Wrong(f"not JSON: {name} is no value")


def _wrong_with(found: Mapping[str, Any], tasks: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a line's keys and values, the image's file left out."""
    missing = [key for key in ("image", "question", "task") if key not in found]
    if "answer" not in found and "answers" not in found:
        missing.append("answer")
    for key in found:
        if key not in KEYS:
            meant = nearest(key, missing) or nearest(key, KEYS)
            missing = [each for each in missing if f"'{each}'" not in meant]
            yield f"unknown key {_shown(key)}; {meant or 'keys: ' + ', '.join(KEYS)}"
    for key in missing:
        yield f"there is no '{key}'" + (" and no 'answers'; expected one of them" if key == "answer" else "")
    for key in ("image", "question", "answer", "task"):
        if key in found and (wrong := _wrong_text(found[key])):
            yield f"'{key}' is {wrong}"
    if "answer" in found and "answers" in found:
        yield "both 'answer' and 'answers' are there; expected one of them"
    if "answers" in found:
        yield from _wrong_answers(found["answers"])
    if "id" in found and (isinstance(found["id"], bool) or not isinstance(found["id"], str | int)):
        yield f"'id' is {_kind(found['id'])}, {_shown(found['id'])}; expected text or a whole number"
    task = found.get("task")
    if isinstance(task, str) and task.strip() and task not in tasks:
        choice = nearest(task, tasks) or f"tasks: {', '.join(tasks)}"
        yield f"unknown task {_shown(task)}; {choice} (questions.tasks lists them)"


def _wrong_answers(value: Any) -> Iterator[str]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else f"{_kind(value)}, {_shown(value)}"
        yield f"'answers' is {found}; expected a list of one text or more"
        return
    for place, answer in enumerate(value, 1):
        if wrong := _wrong_text(answer):
            yield f"number {place} of 'answers' is {wrong}"


def _wrong_text(value: Any) -> str:
    """Why a value is no text with something in it; "" where it is."""
    if not isinstance(value, str):
        return f"{_kind(value)}, {_shown(value)}; expected text"
    if not value.strip():
        return "empty; expected text" if not value else f"blank, {_shown(value)}; expected text"
    if any("\ud800" <= character <= "\udfff" for character in value):
        return "text with half a surrogate pair (\\ud800 to \\udfff alone); expected whole characters"
    return ""


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    """As JSON, on one line, not too long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "…"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
