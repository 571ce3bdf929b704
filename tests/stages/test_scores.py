"""Metrics of text against values worked out by hand, the papers' properties and brute force; and a task's summary."""

import math
import random
import time
import unicodedata
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.data.example import Example, Questions
from stages.data.held_out import examples_of
from stages.evaluation.scores import KINDS, Scorer, score
from stages.evaluation.text_metrics import (
    Cider,
    anls,
    character_error_rate,
    character_errors,
    edit_distance,
    folded,
    short_answer,
    tidy,
    words_of,
)
from tests.conf import group

SHORT = st.text("abc ", max_size=7)
TEXT = st.text(max_size=40)
WORD = st.sampled_from(["a", "the", "red", "blue", "star", "ring", "on", "of", "two"])
WORDS = st.lists(WORD, min_size=1, max_size=9).map(" ".join)


@cache
def slow_distance(first: str, second: str) -> int:
    """By the definition."""
    if not first or not second:
        return len(first) + len(second)
    replaced = slow_distance(first[1:], second[1:]) + (first[0] != second[0])
    return min(replaced, 1 + slow_distance(first[1:], second), 1 + slow_distance(first, second[1:]))


@given(SHORT, SHORT)
def test_the_distance_is_the_definition_s(first: str, second: str) -> None:
    assert edit_distance(first, second) == slow_distance(first, second)


@given(TEXT, TEXT, TEXT)
def test_the_distance_is_a_metric(first: str, second: str, third: str) -> None:
    there = edit_distance(first, second)
    assert there == edit_distance(second, first)
    assert (there == 0) == (first == second)
    assert abs(len(first) - len(second)) <= there <= max(len(first), len(second))
    assert edit_distance(first, third) <= there + edit_distance(second, third)


@given(TEXT, st.data())
def test_one_edit_is_one(text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text)))
    assert edit_distance(text, text[:place] + "\N{SNOWMAN}" + text[place:]) == 1


@pytest.mark.parametrize(
    ("answer", "accepted", "rate"),
    [
        ("sitting", ["kitten"], 3 / 6),
        ("kitten", ["sitting"], 3 / 7),
        ("", ["word"], 1.0),
        ("wordwordword", ["word"], 2.0),
        ("Word", ["word"], 0.25),
        (" a   word\n", ["a word"], 0.0),
        ("e\u0301te\u0301", ["\u00e9t\u00e9"], 0.0),
        ("cat", ["dog", "cut", "a very long text"], 1 / 3),
    ],
)
def test_character_error_rate_by_hand(answer: str, accepted: list[str], rate: float) -> None:
    assert character_error_rate(answer, accepted) == pytest.approx(rate)


@given(TEXT, TEXT.filter(str.strip))
def test_character_error_rate_is_0_where_equal_and_only_there(answer: str, expected: str) -> None:
    rate = character_error_rate(answer, [expected])
    assert rate >= 0
    assert (rate == 0) == (tidy(answer) == tidy(expected))
    assert character_error_rate(expected, [expected]) == 0


@pytest.mark.parametrize(
    ("answer", "value"),
    [("CocaCola", 8 / 9), ("Coca cola", 1.0), ("Cola", 0.0), ("Cat", 0.0), ("The Coca", 0.0)],
)
def test_anls_of_the_competition_s_example(answer: str, value: float) -> None:
    assert anls(answer, ["Coca Cola", "Coca Cola Company"]) == pytest.approx(value)


def test_anls_is_nothing_from_half_on() -> None:
    assert anls("ab", ["ac"]) == 0.0
    assert anls("abc", ["abd"]) == pytest.approx(2 / 3)


@given(TEXT, st.lists(TEXT, min_size=1, max_size=4))
def test_anls_lies_in_its_bounds_and_is_best_for_an_accepted_answer(answer: str, accepted: list[str]) -> None:
    value = anls(answer, accepted)
    assert value == 0 or 0.5 < value <= 1
    assert value == max(anls(answer, [each]) for each in accepted)
    assert all(anls(each, accepted) == 1 for each in accepted)
    assert (value == 1) == (folded(answer) in map(folded, accepted))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("a b", 10 * 2 / 4),  # "a" is in both images and weighs nothing; no n-gram of 3 or 4
        ("b", 10 * 1 / 4 * math.exp(-1 / 72)),  # a word too few
        ("b b", 10 * 0.5 / 4),  # the second "b" is clipped, but makes the vector longer
        ("a c", 0.0),
        ("a", 0.0),
        ("", 0.0),
    ],
)
def test_cider_by_hand(answer: str, value: float) -> None:
    assert Cider([["a b"], ["a c"]]).score(answer, ["a b"]) == pytest.approx(value)


def test_cider_is_the_mean_over_references_and_counts_images_not_captions() -> None:
    cider = Cider([["a b", "a b d"], ["a c"], ["e f"]])
    each = [cider.score("a b", [reference]) for reference in ("a b", "a b d")]
    assert cider.score("a b", ["a b", "a b d"]) == pytest.approx(sum(each) / 2)
    assert Cider([["a b"] * 9, ["a c"], ["e f"]]).score("a b", ["a b"]) == pytest.approx(each[0])


@given(st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=2, max_size=6), WORDS)
def test_cider_lies_in_its_bounds_and_is_best_for_the_one_reference(corpus: list[list[str]], answer: str) -> None:
    cider = Cider(corpus)
    for captions in corpus:
        assert 0 <= cider.score(answer, captions) <= 10
        best = cider.score(captions[0], captions[:1])
        assert cider.score(answer, captions[:1]) <= best + 1e-9


@given(st.lists(st.lists(WORDS, min_size=1, max_size=2), min_size=2, max_size=4), WORDS)
def test_cider_is_the_paper_s_formula(corpus: list[list[str]], answer: str) -> None:
    """Equations 2 to 5, with vectors over the whole vocabulary."""

    def counted(caption: str, gram: tuple[str, ...]) -> int:
        words, order = caption.split(), len(gram)
        return sum(tuple(words[start : start + order]) == gram for start in range(len(words) - order + 1))

    def weight(caption: str, gram: tuple[str, ...]) -> float:
        images = sum(any(counted(each, gram) for each in captions) for captions in corpus)
        return counted(caption, gram) * math.log(len(corpus) / max(1, images))

    expected = 0.0
    for order in (1, 2, 3, 4):
        texts = [answer, *(caption for captions in corpus for caption in captions)]
        grams = {tuple(t.split()[s : s + order]) for t in texts for s in range(len(t.split()) - order + 1)}
        for reference in corpus[0]:
            said, true = ([weight(text, gram) for gram in grams] for text in (answer, reference))
            norms = math.sqrt(sum(x * x for x in said)) * math.sqrt(sum(x * x for x in true))
            shared = sum(min(x, y) * y for x, y in zip(said, true, strict=True))
            difference = len(answer.split()) - len(reference.split())
            expected += 10 / 4 * math.exp(-(difference**2) / 72) * (shared / norms if norms else 0) / len(corpus[0])
    assert Cider(corpus).score(answer, corpus[0]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's RED dog, running.", ["a", "man's", "red", "dog", "running"]),
        ("two–three (big) “stars”!", ["two", "three", "big", "stars"]),
        ("赤い星", ["赤", "い", "星"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("'...'", []),
    ],
)
def test_words_of_a_caption(caption: str, words: list[str]) -> None:
    assert words_of(caption) == [unicodedata.normalize("NFC", word) for word in words]


@pytest.mark.parametrize(
    ("text", "short"), [(" Yes. ", "yes"), ("3.5", "3.5"), ("STRASSE", "strasse"), ("Straße!", "strasse"), ("?", "?")]
)
def test_short_answers(text: str, short: str) -> None:
    assert short_answer(text) == short


@given(TEXT)
def test_normalising_twice_is_once(text: str) -> None:
    for each in (tidy, folded, short_answer):
        assert each(each(text)) == each(text)


def asked(metric: str, *answers: str, task: str = "task") -> Example:
    return Example(PIXELS, "what?", answers, task, 0, metric)


PIXELS = next(iter(examples_of(group("questions", "default", per_task=1)))).image
SET = [
    asked("exact", "bread", "a loaf", task="vqa"),
    asked("cer", "TOTAL 12.50", task="reading"),
    asked("cer", "OK", task="reading"),
    asked("anls", "Coca Cola", task="document"),
    asked("cider", "a red star on a table", task="caption"),
    asked("cider", "two dogs run in the snow", task="caption"),
]


@pytest.mark.parametrize(
    ("index", "answer", "value"),
    [
        (0, "A loaf.", 1.0),
        (0, "loaf", 0.0),
        (1, "total 12.50", 1 - 5 / 11),
        (2, "everything else", 0.0),
        (3, "CocaCola", 8 / 9),
        (4, "A red star on a table.", 1.0),
        (4, "", 0.0),
    ],
)
def test_scores_are_from_0_to_1_and_better_when_higher(index: int, answer: str, value: float) -> None:
    assert Scorer(SET).score(index, answer) == pytest.approx(value)


def test_a_summary_tells_the_task_s_metrics() -> None:
    scorer = Scorer(SET)
    answers = ["bread", "total 12.50", "everything else", "CocaCola", "a red star on a table", ""]
    assert scorer.summary("vqa", answers) == {"metric": "exact", "score": 1.0, "exact": 1.0}
    reading = scorer.summary("reading", answers)
    assert reading.pop("score") == pytest.approx((6 / 11 + 0) / 2)
    assert reading == {"metric": "cer", "exact": 0.0, "cer": (5 + 15) / (11 + 2)}
    assert scorer.summary("document", answers) == {
        "metric": "anls",
        "score": pytest.approx(8 / 9),
        "exact": 0.0,
        "anls": pytest.approx(8 / 9),
    }
    caption = {"metric": "cider", "score": pytest.approx(0.5), "exact": 0.5, "cider": pytest.approx(5.0)}
    assert scorer.summary("caption", answers) == caption
    whole = scorer.summary(None, answers)
    mean = sum(scorer.score(index, answer) for index, answer in enumerate(answers)) / len(answers)
    assert whole == {"metric": "score", "score": pytest.approx(mean), "exact": pytest.approx(2 / 6)}


def test_a_summary_of_nothing_or_of_too_few_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="no question of task ocl"):
        Scorer(SET).summary("ocl", [""] * len(SET))
    with pytest.raises(ValueError, match="1 answers to 6 questions"):
        Scorer(SET).summary("vqa", ["bread"])


def test_the_rarity_of_words_is_counted_in_the_whole_set_whatever_was_drawn() -> None:
    drawn = Scorer(Questions(SET[4:5], SET))
    answer = "a red star on the wall"
    assert drawn.score(0, answer) == Scorer(SET).score(4, answer) > 0
    assert Scorer(SET[4:5]).score(0, answer) == 0


def test_procedural_tasks_keep_their_scores() -> None:
    """The nine tasks, whatever is answered, as `score` gives them."""
    examples = examples_of(group("questions", "default", per_task=4))
    scorer, said = Scorer(examples), ["", "A RED STAR", "a red star", "TAPE", "7", "left"]
    for index, example in enumerate(examples):
        for answer in [*said, example.answer, f" {example.answer} ", example.answer.lower(), example.answer.upper()]:
            assert scorer.score(index, answer) == score(example.task, answer, example.answer)
    right = [example.answer for example in examples]
    told = {
        task: set(scorer.summary(task, right)) - {"metric", "score", "exact"} for task in {e.task for e in examples}
    }
    assert {task: metrics for task, metrics in told.items() if metrics} == {
        "ocr": {"cer"},
        "ocr_unseen_fonts": {"cer"},
        "caption": {"cider"},
    }
    metrics = {task: scorer.summary(task, right)["metric"] for task in told}
    assert metrics == {task: "facts" if task == "caption" else "exact" for task in told}
    assert all(scorer.summary(task, right)["score"] == 1 for task in told)


@given(st.sampled_from(sorted(KINDS)), st.lists(TEXT.filter(words_of), min_size=1, max_size=3), TEXT)
def test_any_answer_has_a_score_and_an_accepted_one_is_exact(metric: str, accepted: list[str], answer: str) -> None:
    if metric == "facts" and not accepted[0].replace(",", "").strip():
        return
    scorer = Scorer([asked(metric, *accepted), asked(metric, "something else entirely, of five words")])
    assert 0 <= scorer.score(0, answer) <= 1
    assert 0 <= float(scorer.summary(None, [answer, answer])["score"]) <= 1
    assert scorer.summary(None, [accepted[0], "something else entirely, of five words"])["exact"] == 1


def test_2000_answers_take_less_than_a_second() -> None:
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz     "
    lines = ["".join(rng.choice(letters) for _ in range(60)) for _ in range(2001)]
    for metric in ("cer", "anls", "exact"):
        scorer = Scorer([asked(metric, line) for line in lines[1:]])
        began = time.process_time()
        for index, line in enumerate(lines[:-1]):
            scorer.score(index, line)
        assert time.process_time() - began < 1, metric
    assert character_errors(lines[0], lines[1:2])[0] > 30
