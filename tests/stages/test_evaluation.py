"""Scores, retention, and the batched torch answers that every runtime is compared with."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluation import bootstrap
from stages.evaluation.batching import LARGEST, batch_size
from stages.evaluation.bootstrap import retention
from stages.evaluation.forced import forced_logits
from stages.evaluation.scores import score
from stages.evaluation.torch_answers import encode_images, generate
from stages.models.qwen2 import CachedContext, MaskedContext
from tests.toy import toy_checkpoint, toy_config


@pytest.mark.parametrize(
    ("task", "answer", "expected", "value"),
    [
        ("ocr", "TAPE", "TAPE", 1.0),
        ("ocr", " TAPE ", "TAPE", 1.0),
        ("ocr", "TAPF", "TAPE", 0.0),
        ("digit", "", "7", 0.0),
        ("caption", "a red star, a blue ring", "a blue ring, a red star", 1.0),
        ("caption", "a red star", "a red star, a blue ring", 0.5),
        ("caption", "a red star, a blue ring", "a red star", 0.5),
        ("caption", "a red star, a red star", "a red star", 0.5),
        ("caption", "", "a red star", 0.0),
    ],
)
def test_score(task: str, answer: str, expected: str, value: float) -> None:
    assert score(task, answer, expected) == value


def test_retention_is_the_ratio_of_means_with_an_interval_that_holds_it() -> None:
    reference, artifact = np.ones(200), np.ones(200)
    artifact[:6] = 0
    kept = retention(artifact, reference, resamples=2000, confidence=0.95, seed=1)
    assert kept.value == pytest.approx(0.97)
    assert 0.93 < kept.low < 0.97 < kept.high <= 1.0
    assert kept == retention(artifact, reference, resamples=2000, confidence=0.95, seed=1)


def test_pairing_makes_the_interval_narrow() -> None:
    """The same questions wrong on both sides: nothing is lost, and the interval says so."""
    scores = np.r_[np.ones(60), np.zeros(40)]
    assert retention(scores, scores, resamples=500, confidence=0.95, seed=1).low == 1.0


def test_resamples_are_the_same_however_many_are_drawn_at_a_time(monkeypatch):
    random = np.random.default_rng(3)
    artifact, reference = random.random(37), random.random(37)
    whole = retention(artifact, reference, resamples=101, confidence=0.9, seed=5)
    for block in (1, 37, 100, 1000):
        monkeypatch.setattr(bootstrap, "_BLOCK", block)
        assert retention(artifact, reference, resamples=101, confidence=0.9, seed=5) == whole


@pytest.mark.parametrize(
    ("pixels", "words", "tokens", "expected"),
    [(64, 416, 24, LARGEST), (1024, 416, 24, 2), (64, 151_936, 256, 2), (4096, 151_936, 2048, 1)],
)
def test_fewer_questions_of_a_larger_model_are_in_memory(pixels, words, tokens, expected):
    shape = toy_config()
    config = replace(shape, vision=replace(shape.vision, image_size=pixels), text=replace(shape.text, vocab_size=words))
    assert batch_size(config, tokens) == expected


def test_retention_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.RandomState(5)
    covered = 0
    for _ in range(200):
        reference = (generator.rand(300) < 0.97).astype(float)
        artifact = np.where(generator.rand(300) < 0.03, 1 - reference, reference)
        truth = (0.97 * 0.97 + 0.03 * 0.03) / 0.97
        kept = retention(artifact, reference, resamples=400, confidence=0.95, seed=2)
        covered += kept.low <= truth <= kept.high
    assert 180 <= covered <= 199


def test_a_reference_that_knows_nothing_passes_no_gate() -> None:
    kept = retention(np.zeros(5), np.zeros(5), resamples=10, confidence=0.9, seed=1)
    assert (kept.value, kept.low) == (0.0, 0.0)


def test_unpaired_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="paired"):
        retention(np.ones(4), np.ones(5), resamples=10, confidence=0.9, seed=1)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=6), st.integers(0, 99))
def test_batched_answers_equal_answers_one_by_one(shapes: list[tuple[int, int]], seed: int) -> None:
    model = MODEL
    generator = np.random.RandomState(seed)
    prompts = [[258] * 32 + generator.randint(0, 256, length).tolist() for length, _ in shapes]
    features = encode_images(model, generator.standard_normal((len(shapes), 3, 32, 32)).astype(np.float32))
    together = generate(model, features, prompts, end=257, limit=4)
    alone = [generate(model, features[i : i + 1], [p], end=257, limit=4)[0] for i, p in enumerate(prompts)]
    assert together == alone


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), min_size=1, max_size=7),
    st.booleans(),
    st.integers(0, 99),
)
def test_forced_logits_are_those_of_one_token_after_the_other(
    shapes: list[tuple[int, int]], twins: bool, seed: int
) -> None:
    generator = np.random.RandomState(seed)
    shapes = shapes * 2 if twins else shapes  # questions of one length share a batch
    prompts = [[258] * 32 + generator.randint(0, 256, length).tolist() for length, _ in shapes]
    answers = [generator.randint(0, 257, length).tolist() for _, length in shapes]
    features = torch.from_numpy(generator.standard_normal((len(shapes), 32, 64)).astype(np.float32))
    found = dict(forced_logits(MODEL, features, prompts, answers))
    assert sorted(found) == [index for index, answer in enumerate(answers) if answer]
    for index, logits in found.items():
        expected = stepped(prompts[index], answers[index], features[index])
        assert logits.shape == (len(answers[index]), 288)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def stepped(prompt: list[int], answer: list[int], features: torch.Tensor) -> np.ndarray:
    """(tokens of the answer, V): what is expected in place of each, from a cache that holds those before it."""
    text, ids = MODEL.config.text, prompt
    caches = [torch.zeros(1, 1, 64, 32) for _ in range(2 * text.num_hidden_layers)]
    visual, position, rows = torch.zeros(1, len(prompt), 64), 0, []
    visual[0, :32] = features
    for token in answer:
        context = CachedContext(torch.tensor([position]), caches, text)
        hidden = MODEL.text.hidden(MODEL.embed(torch.tensor([ids]), visual), context)
        rows.append(MODEL.text.head(hidden[0, -1]).numpy())
        caches, position = context.caches, position + len(ids)
        ids, visual = [token], torch.zeros(1, 1, 64)
    return np.stack(rows)


def test_an_answer_of_the_model_s_own_is_what_it_expects() -> None:
    features, prompt = torch.zeros(1, 32, 64), [258] * 32 + [5]
    answer = generate(MODEL, features, [prompt], end=257, limit=5)[0]
    wrong = [(answer[0] + 1) % 256, *answer[1:]]
    expected = [dict(forced_logits(MODEL, features, [prompt], [said]))[0] for said in (answer, wrong)]
    assert expected[0].argmax(1).tolist() == answer
    np.testing.assert_array_equal(expected[0][0], expected[1][0])  # before the wrong token
    assert np.abs(expected[0][1:] - expected[1][1:]).max() > 1e-3  # and behind it


def test_generation_is_the_argmax_of_the_whole_sequence() -> None:
    features, prompt = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(1)), [258] * 32 + [5, 6]
    ids = list(prompt)
    for token in generate(MODEL, features, [prompt], end=257, limit=5)[0]:
        aligned = torch.zeros(1, len(ids), 64)
        aligned[:, :32] = features
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        context = MaskedContext(torch.arange(len(ids)), mask, MODEL.config.text)
        with torch.inference_mode():
            logits = MODEL.text(MODEL.embed(torch.tensor([ids]), aligned), context)
        assert int(logits[0, -1].argmax()) == token
        ids.append(token)


@pytest.fixture(scope="module", autouse=True)
def _model(tmp_path_factory: pytest.TempPathFactory) -> None:
    global MODEL
    MODEL = toy_checkpoint(Path(tmp_path_factory.mktemp("toy"))).model()
