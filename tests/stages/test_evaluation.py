"""Scores, retention, gates, and the batched torch answers that every runtime is compared with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from stages.evaluation.bootstrap import retention
from stages.evaluation.gates import check_budgets, check_gates
from stages.evaluation.scores import score
from stages.evaluation.torch_answers import agreement, encode_images, generate
from stages.models.qwen2 import MaskedContext
from stages.schema import Budgets, Gate
from tests.toy import toy_checkpoint

METRICS = {
    "tasks": {"ocr": {"retention_low": 0.97, "flips": 0.01}, "digit": {"retention_low": 0.93, "flips": 0.0}},
    "parity": {"top1": 0.999, "tokens": 400},
    "size_bytes": 1000,
}


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


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (Gate("retention_low", None, 0.95, None), [True, False]),
        (Gate("retention_low", "ocr", 0.95, None), [True]),
        (Gate("flips", None, None, 0.02), [True, True]),
        (Gate("parity.top1", None, 0.995, None), [True]),
        (Gate("size_bytes", None, None, 999), [False]),
        (Gate("size_bytes", None, 1000, 1000), [True, True]),
    ],
)
def test_gates(gate: Gate, passed: list[bool]) -> None:
    assert [result["passed"] for result in check_gates(METRICS, [gate])] == passed


PREDICTED = {"token_ms": 2.0, "first_token_ms": 80.0, "encode_ms": 30.0}


@pytest.mark.parametrize(
    ("budgets", "passed"),
    [
        (Budgets(None, 2.0, None, None), {"budget.token_ms": True}),
        (Budgets(None, 1.9, 100.0, None), {"budget.token_ms": False, "budget.first_token_ms": True}),
        (Budgets(0.001, None, None, 29.0), {"budget.size_mib": True, "budget.encode_ms": False}),
    ],
)
def test_predicted_latencies_are_held_against_budgets(budgets: Budgets, passed: dict[str, bool]) -> None:
    gates = check_budgets({**METRICS, "predicted": PREDICTED}, budgets)
    assert {gate["metric"]: gate["passed"] for gate in gates} == passed
    assert all(gate["value"] == PREDICTED[gate["metric"][7:]] for gate in gates if gate["metric"].endswith("_ms"))


def test_a_budget_of_what_cannot_be_predicted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"budgets\.token_ms is 5"):
        check_budgets(METRICS, Budgets(None, 5.0, None, None))


@pytest.mark.parametrize(("size_mib", "passed"), [(None, []), (0.001, [True]), (0.0005, [False])])
def test_a_budget_is_a_gate(size_mib: float | None, passed: list[bool]) -> None:
    assert [gate["passed"] for gate in check_budgets(METRICS, Budgets(size_mib, None, None, None))] == passed


@pytest.mark.parametrize(
    ("gate", "hint"),
    [
        (Gate("retention_lo", None, 0.9, None), "retention_low"),
        (Gate("parity_top1", None, 0.9, None), "parity.top1"),
        (Gate("flips", "ocl", None, 1), "ocr"),
    ],
)
def test_a_gate_on_nothing_is_refused_with_the_nearest_name(gate: Gate, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_gates(METRICS, [gate])
    assert hint in str(error.value) + error.value.hint


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=6), st.integers(0, 99))
def test_batched_answers_equal_answers_one_by_one(shapes: list[tuple[int, int]], seed: int) -> None:
    model = MODEL
    generator = np.random.RandomState(seed)
    prompts = [[258] * 32 + generator.randint(0, 256, length).tolist() for length, _ in shapes]
    features = encode_images(model, generator.standard_normal((len(shapes), 3, 32, 32)).astype(np.float32))
    together = generate(model, features, prompts, end=257, limit=4)
    alone = [generate(model, features[i : i + 1], [p], end=257, limit=4)[0] for i, p in enumerate(prompts)]
    assert together == alone
    assert agreement(model, features, prompts, together)[0] == sum(map(len, together))


def test_agreement_sees_a_wrong_token() -> None:
    features = torch.zeros(1, 32, 64)
    prompt = [258] * 32 + [5]
    answer = generate(MODEL, features, [prompt], end=257, limit=5)[0]
    wrong = [*answer[:-1], (answer[-1] + 1) % 256]
    same, total = agreement(MODEL, features, [prompt], [wrong])
    assert (same, total) == (len(answer) - 1, len(answer))


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
