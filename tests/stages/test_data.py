"""The reference data: the same everywhere, split cleanly, and its questions have the right answers."""

import random
from collections import Counter

import numpy as np
import pytest

from stages.data.batches import GRIDS, label_grid
from stages.data.digits import handwritten
from stages.data.fonts import font_names, load_font
from stages.data.questions import NUMBERS, ask, corpus, facts, plural
from stages.data.scenes import SHAPES, SIZE, Scene, Shape, draw_scene
from stages.data.source import question_source
from stages.data.tokenizer import train_tokenizer
from stages.data.words import LETTERS, draw_word, is_held_out
from stages.evaluation.names import TASKS


def scene_of(*shapes: tuple[str, str, float, float], word: str | None = None) -> Scene:
    blank = np.zeros((SIZE, SIZE, 3), np.uint8)
    return Scene(blank, word, [], [Shape(name, color, x, y, 8) for name, color, x, y in shapes], None)


def answers(scene: Scene, task: str, tries: int = 40) -> set[tuple[str, str]]:
    questions = [question for seed in range(tries) for question in ask(random.Random(seed), scene)]
    return {(question.text, question.answer) for question in questions if question.task == task}


def test_a_scene_is_a_function_of_its_seed() -> None:
    first, second = (draw_scene(random.Random("7"), held_out=True).pixels for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, draw_scene(random.Random("8"), held_out=True).pixels)


def test_every_font_draws_every_letter() -> None:
    for unseen in (False, True):
        for font in font_names(unseen):
            boxes = {load_font(*font, 20).getmask(letter).getbbox() for letter in LETTERS}
            assert None not in boxes, f"{font} has empty letters"
    assert not set(font_names(False)) & set(font_names(True))


def test_no_word_is_in_both_splits() -> None:
    rng = random.Random(1)
    training, test = ({draw_word(rng, held_out) for _ in range(2000)} for held_out in (False, True))
    assert not training & test
    assert all(is_held_out(word) for word in test)
    assert {len(word) for word in training} == {3, 4, 5, 6, 7, 8}
    assert set("".join(training)) == set(LETTERS)


def test_digits_of_the_splits_are_all_of_them_and_apart() -> None:
    training, test = handwritten(False), handwritten(True)
    assert len(training[0]) + len(test[0]) == 1797
    assert len(test[0]) == 450
    assert set(training[1].tolist()) == set(test[1].tolist()) == set(range(10))


def test_questions_have_the_answers_of_the_scene() -> None:
    scene = scene_of(("star", "red", 20, 50), ("star", "blue", 70, 52), ("ring", "red", 45, 10), word="TAPE")
    assert answers(scene, "ocr") == {("read the word", "TAPE")}
    assert answers(scene, "color") == {("what color is the ring?", "red")}
    assert answers(scene, "shape") == {("what shape is blue?", "star")}
    assert ("how many stars are there?", "two") in answers(scene, "count")
    assert ("where is the red star relative to the blue star?", "left") in answers(scene, "position")
    assert ("where is the red ring relative to the red star?", "above") in answers(scene, "position")
    assert answers(scene, "caption") == {("describe the image", "a red star, a red ring, a blue star")}
    for question, answer in answers(scene, "existence"):
        thing = question.removeprefix("is there a ").removeprefix("is there an ").removesuffix("?")
        assert (answer == "yes") == (thing in ("red star", "blue star", "red ring"))


def test_ambiguous_questions_are_not_asked() -> None:
    diagonal = scene_of(("star", "red", 20, 20), ("star", "red", 60, 60))
    assert not answers(diagonal, "position")
    assert not answers(diagonal, "color")
    assert not answers(diagonal, "shape")


def test_counts_are_of_what_was_drawn() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        scene = draw_scene(rng, held_out=False)
        counted = {plural(name): NUMBERS[sum(s.name == name for s in scene.shapes)] for name in SHAPES}
        for question, answer in answers(scene, "count", tries=5):
            assert counted[question.removeprefix("how many ").removesuffix(" are there?")] == answer


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red star", {"a red star": 1}),
        ("a red star, a red star", {"a red star": 2}),
        ("", {}),
        ("an orange ring,, ", {"an orange ring": 1}),
    ],
)
def test_facts(caption: str, expected: dict[str, int]) -> None:
    assert facts(caption) == Counter(expected)


def test_every_letter_has_its_place_in_the_image_and_only_letters_of_the_word_are_marked() -> None:
    for seed in range(30):
        scene = draw_scene(random.Random(seed), held_out=False, kind="word")
        assert "".join(letter for letter, _, _ in scene.letters) == scene.word
        for _, x, y in scene.letters:
            assert 0 <= x < SIZE and 0 <= y < SIZE
        grid = label_grid(scene, (6, 12))
        assert grid.shape == (len(GRIDS), 72)
        assert set(grid[0][grid[0] > 0] - 1) <= {LETTERS.index(letter) for letter in scene.word or ""}


def test_by_task_gives_the_same_held_out_questions_each_time() -> None:
    first, second = (question_source().by_task(3, seed=5) for _ in range(2))
    assert Counter(example.task for example in first) == dict.fromkeys(TASKS, 3)
    assert all(
        np.array_equal(a.image, b.image) and a.question == b.question for a, b in zip(first, second, strict=True)
    )
    assert all(is_held_out(example.answer) for example in first if example.task.startswith("ocr"))


def test_calibration_is_drawn_like_the_training_data() -> None:
    examples = question_source().examples("calibration", 40, seed=3)
    assert len(examples) == 40
    assert {example.task for example in examples} <= set(TASKS)
    assert not any(is_held_out(example.answer) for example in examples if example.task == "ocr")


def test_tokenizer_keeps_every_sentence_and_any_text() -> None:
    tokenizer = train_tokenizer(corpus())
    assert [tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>", "<image>")] == [0, 1, 2]
    for text in [*corpus(), "GRÜSSE, 世界 123"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("ABCDEFGH").ids) == 8
    assert tokenizer.to_str() == train_tokenizer(corpus()).to_str()
