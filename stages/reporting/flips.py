"""The answers that changed, with the images that they are about: each image once, whoever answered."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.reporting.facts import Evaluation, Facts, listed, read_lines
from stages.reporting.markup import Html, element, foreign
from stages.reporting.words import ABSENT, count, is_number

TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
LARGEST = 512 * 1024  # bytes of an image that the page holds
OPEN, MOST = 12, 200  # flips that are shown at once, and at all


def flips(facts: Facts) -> Html:
    """A card for each question whose answer changed, the worst loss first."""
    cards = _cards(facts)
    if not cards:
        told = any(node for node in facts.holders("flips.jsonl"))
        return element(
            "p", "No answer changed." if told else "The answers that changed were not recorded.", class_="lead"
        )
    ordered = sorted(cards.values(), key=lambda card: (card["image"] is None, -card["loss"]))
    shown = [_card(card) for card in ordered[:MOST]]
    lost = sum(card["loss"] > 0 for card in ordered)
    words = f"{count(len(ordered), 'question')} with another score than the original's: {lost} worse on some device."
    parts = [element("p", words, class_="lead"), element("ul", shown[:OPEN], class_="flips")]
    if len(shown) > OPEN:
        rest = element("ul", shown[OPEN:], class_="flips")
        parts.append(element("details", element("summary", f"{len(shown) - OPEN} more"), rest))
    if len(ordered) > MOST:
        parts.append(element("p", f"{len(ordered) - MOST} more are in flips.jsonl of the evaluation.", class_="lead"))
    return element("div", parts)


def _cards(facts: Facts) -> dict[tuple[str, str, str], dict[str, Any]]:
    """{(task, question, image): {"flip", "image", "loss", "answers": [(evaluation, flip)]}}."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for evaluation in facts.evaluations:
        folder, seen = evaluation.node.folder if evaluation.node else None, dict[str, int]()
        for flip in read_lines(folder / "flips.jsonl") if folder else []:
            data = _image(folder, flip.get("image"))
            mark = hashlib.sha256(data).hexdigest() if data else f"{flip.get('expected')}, {flip.get('before')}"
            told = f"{flip.get('task')}, {flip.get('question')}, {mark}"
            seen[told] = seen.get(told, 0) + 1  # the same again, in one evaluation, is another question
            mark += f", {seen[told]}"
            key = (str(flip.get("task")), str(flip.get("question")), mark)
            card = found.setdefault(key, {"flip": flip, "image": data, "loss": 0.0, "answers": []})
            card["answers"].append((evaluation, flip))
            before, after = flip.get("score_before"), flip.get("score_after")
            if is_number(before) and is_number(after):
                card["loss"] = max(card["loss"], before - after)
    return found


def _alike(answers: Sequence[tuple[Evaluation, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Evaluations that answered alike as one, named with how many devices share them."""
    groups: dict[tuple[str, str], list[tuple[Evaluation, Mapping[str, Any]]]] = {}
    for evaluation, flip in answers:
        groups.setdefault((str(flip.get("after")), str(flip.get("score_after"))), []).append((evaluation, flip))
    found = []
    for group in groups.values():
        devices = sum(len(evaluation.devices) for evaluation, _ in group)
        label = listed([evaluation.label for evaluation, _ in group], 2)
        found.append((f"{label}: {count(devices, 'device')}", group[0][1]))
    return found


def _card(card: Mapping[str, Any]) -> Html:
    flip = card["flip"]
    answers = [
        element(
            "tr",
            element("th", foreign(label), scope="row"),
            element("td", foreign(each.get("after", ""))),
            element("td", _change(each)),
        )
        for label, each in _alike(card["answers"])
    ]
    original = element(
        "tr",
        element("th", "Original", scope="row"),
        element("td", foreign(flip.get("before", ""))),
        element("td", f"score {_score(flip.get('score_before'))}"),
    )
    expected = element(
        "tr",
        element("th", "Expected", scope="row"),
        element("td", foreign(_joined(flip.get("expected")))),
        element("td", ""),
    )
    return element(
        "li",
        _picture(card["image"], f"The image of the question {flip.get('question', '')}"),
        element(
            "div",
            element(
                "p",
                element("span", foreign(flip.get("task", "")), class_="tag"),
                " ",
                element("b", foreign(flip.get("question", ""))),
            ),
            element("table", element("tbody", expected, original, answers), class_="answers"),
        ),
    )


def _change(flip: Mapping[str, Any]) -> Html:
    before, after = flip.get("score_before"), flip.get("score_after")
    if not (is_number(before) and is_number(after)):
        return Html("")
    word = "worse" if after < before else "better" if after > before else "same score"
    return element("span", f"{_score(after)}, {word}", class_=f"change {word.split()[0]}")


def _score(value: Any) -> str:
    return f"{value:.2f}" if is_number(value) else ABSENT


def _picture(data: bytes | None, words: str) -> Html:
    kind = next((kind for head, kind in TYPES.items() if data and data.startswith(head)), None)
    if data is None or kind is None:
        return element("div", "no image", class_="no-image")
    if len(data) > LARGEST:
        return element("div", f"image of {len(data) // 1024} KiB, not shown", class_="no-image")
    return element("img", src=f"data:{kind};base64,{base64.b64encode(data).decode()}", alt=words)


def _image(folder: Path | None, name: Any) -> bytes | None:
    """The image's bytes; only of a file that lies in the artifact."""
    if folder is None or not isinstance(name, str):
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    try:
        return path.read_bytes()
    except OSError:
        return None


def _joined(expected: Any) -> str:
    return (
        ", ".join(map(str, expected)) if isinstance(expected, list) else str(expected if expected is not None else "")
    )
