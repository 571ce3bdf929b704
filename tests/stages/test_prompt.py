"""Prompts: the template around a question, and the image token once for each visual token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import CheckpointError, StageError
from stages.data.prompt import PromptFormat
from tests.toy import PREPROCESSING, toy_checkpoint, toy_tokenizer

START, END, IMAGE = 256, 257, 258
TOKENS = 5
FORMAT = PromptFormat.of(toy_tokenizer(), PREPROCESSING, IMAGE, TOKENS)


def test_the_image_comes_first_then_the_question_then_the_start_of_the_answer():
    ids = FORMAT.encode("Hi")
    assert ids[:TOKENS] == [IMAGE] * TOKENS and ids[-1] == START
    assert FORMAT.decode(ids) == "Hi"


def test_a_template_may_have_text_before_the_image_or_no_image():
    before = PromptFormat.of(
        toy_tokenizer(), {**PREPROCESSING, "prompt_template": "A{image}{question}"}, IMAGE, TOKENS
    ).encode("B")
    assert before[1:-1] == [IMAGE] * TOKENS
    without = PromptFormat.of(toy_tokenizer(), {**PREPROCESSING, "prompt_template": "{question}"}, IMAGE, TOKENS)
    assert IMAGE not in without.encode("B")


@given(st.text(max_size=40).filter(lambda text: "<" not in text))
def test_any_question_survives(question):
    ids = FORMAT.encode(question)
    assert ids.count(IMAGE) == TOKENS
    assert FORMAT.decode(ids) == question.strip()


def test_a_question_with_the_image_token_or_braces():
    with pytest.raises(StageError, match="holds the image token"):
        FORMAT.encode("what is <image>?")
    assert FORMAT.encode("{image}").count(IMAGE) == TOKENS
    assert FORMAT.decode(FORMAT.encode("{image} {question}")) == "{image} {question}"


def test_it_opens_from_an_artifacts_folder(tmp_path):
    checkpoint = toy_checkpoint(tmp_path)
    found = PromptFormat.open(checkpoint.path, IMAGE, TOKENS)
    assert (found.end_id, found.max_new_tokens) == (END, PREPROCESSING["max_new_tokens"])
    assert found.encode("Hi") == FORMAT.encode("Hi")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        PromptFormat.open(checkpoint.path, IMAGE, TOKENS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_template": "{image}"}, "prompt_template"),
        ({"prompt_template": "{image}{image}{question}"}, "prompt_template"),
        ({"end_token": "<|im_ende|>"}, "end_token"),
    ],
)
def test_a_wrong_preprocessing_file_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message) as error:
        PromptFormat.of(toy_tokenizer(), {**PREPROCESSING, **change}, IMAGE, TOKENS)
    assert error.value.hint
