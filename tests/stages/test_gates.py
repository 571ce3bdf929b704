"""Gates and budgets: what they look at, which end of an interval, by how much they fail, and what they refuse."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from stages.evaluation.gates import check_budgets, check_gates
from stages.schema import Budgets, Gate, Prediction

WORST, VALUE = Prediction.worst, Prediction.value
NO_BUDGET: dict[str, float | None] = dict.fromkeys(
    ("size_mib", "memory_mib", "token_ms", "first_token_ms", "encode_ms")
)
METRICS: dict[str, Any] = {
    "questions": {"count": 300},
    "overall": {"retention_low": 0.96, "flips": 0.02},
    "tasks": {
        "ocr": {"retention_low": 0.97, "flips": 0.01, "cer": 0.004},
        "digit": {"retention_low": 0.93, "flips": 0.0},
    },
    "parity": {"top1": 0.999, "tokens": 400},
    "fidelity": {"kl": 0.01, "scale_error": 0.004},
    "size_bytes": 1000,
    "risks": 3,
}
PREDICTED = {
    "token_ms": {"value": 2.0, "low": 1.5, "high": 3.0},
    "first_token_ms": {"value": 80.0, "low": 60.0, "high": 100.0},
    "encode_ms": {"value": 30.0, "low": 20.0, "high": 45.0},
    "peak_memory_mib": {"value": 200.0, "low": 150.0, "high": 260.0},
    "tokens_per_s": {"value": 500.0, "low": 333.0, "high": 666.0},
}
KNOWN: dict[str, Any] = {**METRICS, "predicted": PREDICTED, "by_context": {"512": {}}, "basis": {"decode": "counted"}}


def budgets(**values: float) -> Budgets:
    return Budgets(**{**NO_BUDGET, **values})


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (Gate("retention_low", None, 0.95, None), {"ocr": True, "digit": False}),
        (Gate("retention_low", "ocr", 0.95, None), {"ocr": True}),
        (Gate("retention_low", "overall", 0.95, None), {"overall": True}),
        (Gate("retention_low", "overall", 0.97, None), {"overall": False}),
        (Gate("flips", None, None, 0.02), {"ocr": True, "digit": True}),
        (Gate("cer", None, None, 0.005), {"ocr": True}),  # of the tasks that have it
        (Gate("cer", "ocr", None, 0.003), {"ocr": False}),
        (Gate("parity.top1", None, 0.995, None), {None: True}),
        (Gate("fidelity.kl", None, None, 0.009), {None: False}),
        (Gate("fidelity.scale_error", None, None, 0.02), {None: True}),
        (Gate("fidelity.scale_error", None, None, 0.003), {None: False}),
        (Gate("size_bytes", None, None, 999), {None: False}),
        (Gate("risks", None, None, 3), {None: True}),  # a bound is inside
    ],
)
def test_each_task_or_all_together_or_the_model(gate: Gate, passed: dict[str | None, bool]) -> None:
    found = check_gates(METRICS, [gate], WORST)
    assert {result["task"]: result["passed"] for result in found} == passed


def test_a_min_and_a_max_are_two_gates() -> None:
    lower, upper = check_gates(METRICS, [Gate("size_bytes", None, 900, 990)], WORST)
    assert (lower["kind"], lower["bound"], lower["passed"], lower["by"]) == ("min", 900, True, 100)
    assert (upper["kind"], upper["bound"], upper["passed"], upper["by"]) == ("max", 990, False, -10)
    assert not lower["predicted"] and lower["end"] == "value"


@pytest.mark.parametrize(
    ("gate", "predictions", "end", "value", "passed"),
    [
        (Gate("predicted.token_ms", None, None, 2.5), WORST, "high", 3.0, False),
        (Gate("predicted.token_ms", None, None, 2.5), VALUE, "value", 2.0, True),
        (Gate("predicted.token_ms", None, 1.6, None), WORST, "low", 1.5, False),
        (Gate("predicted.tokens_per_s", None, 400, None), WORST, "low", 333.0, False),
        (Gate("predicted.tokens_per_s", None, 400, None), VALUE, "value", 500.0, True),
        (Gate("predicted.peak_memory_mib", None, None, 260), WORST, "high", 260.0, True),
    ],
)
def test_of_an_interval_the_worse_end_counts(
    gate: Gate, predictions: Prediction, end: str, value: float, passed: bool
) -> None:
    (found,) = check_gates(KNOWN, [gate], predictions)
    assert (found["end"], found["value"], found["passed"], found["predicted"]) == (end, value, passed, True)


@given(st.floats(0.1, 9), st.floats(0, 3), st.floats(0, 3), st.floats(0.1, 9), st.sampled_from(["min", "max"]))
def test_what_passes_at_the_worst_end_passes_in_the_middle(
    value: float, below: float, above: float, bound: float, kind: str
) -> None:
    metrics = {**METRICS, "predicted": {"energy_j": {"value": value, "low": value - below, "high": value + above}}}
    gate = Gate("predicted.energy_j", None, **{"min": None, "max": None, kind: bound})
    (worst,), (middle,) = (check_gates(metrics, [gate], each) for each in (WORST, VALUE))
    assert worst["by"] <= middle["by"] and worst["passed"] <= middle["passed"]
    assert all(each["passed"] == (each["by"] >= 0) for each in (worst, middle))


@pytest.mark.parametrize("name", ["scale_error"])
def test_what_is_known_of_some_models_alone_is_asked_of_them(name: str) -> None:
    """A model whose weights were trained has no scale error; its gate is not there then, and fails nothing."""
    metrics = {**METRICS, "fidelity": {"kl": 0.01}}
    assert check_gates(metrics, [Gate(f"fidelity.{name}", None, None, 0.0)], WORST) == []


@pytest.mark.parametrize(
    ("gate", "part"),
    [
        (Gate("retention_lo", None, 0.9, None), "retention_low"),
        (Gate("parity_top1", None, 0.9, None), "parity.top1"),
        (Gate("flips", "ocl", None, 1), "ocr"),
        (Gate("cer", "digit", None, 1), "cer' of digit"),
        (Gate("predicted.token_ms", None, None, 9), "cannot be predicted of this model on this device"),
    ],
)
def test_a_gate_on_nothing_is_refused_with_the_next_step(gate: Gate, part: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_gates(METRICS, [gate], WORST)
    assert error.value.hint and part in str(error.value) + error.value.hint


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ({"token_ms": 3.0}, {"token_ms": True}),
        ({"token_ms": 2.9, "first_token_ms": 100.0}, {"token_ms": False, "first_token_ms": True}),
        ({"size_mib": 0.001, "encode_ms": 44.0}, {"size_mib": True, "encode_ms": False}),
        ({"size_mib": 0.0005}, {"size_mib": False}),
        ({"memory_mib": 250.0}, {"memory_mib": False}),
        ({"memory_mib": 260.0}, {"memory_mib": True}),
        ({}, {}),
    ],
)
def test_budgets_are_gates_on_the_worst_end(given: dict[str, float], passed: dict[str, bool]) -> None:
    found = check_budgets(KNOWN, budgets(**given), WORST)
    assert {gate["metric"]: gate["passed"] for gate in found} == {
        f"budget.{name}": each for name, each in passed.items()
    }
    for gate in found:
        assert gate["kind"] == "max" and gate["bound"] == given[gate["metric"].removeprefix("budget.")]
        assert gate["predicted"] == (gate["metric"] != "budget.size_mib")


def test_budgets_in_the_middle() -> None:
    (gate,) = check_budgets(KNOWN, budgets(memory_mib=210), VALUE)
    assert gate["passed"] and (gate["value"], gate["by"]) == (200.0, 10.0)


@pytest.mark.parametrize("name", ["memory_mib", "token_ms", "first_token_ms", "encode_ms"])
def test_a_budget_of_what_cannot_be_predicted_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"budgets\.{name} is 5"):
        check_budgets(METRICS, budgets(**{name: 5.0}), WORST)
    assert check_budgets(METRICS, budgets(size_mib=5), WORST)[0]["passed"]
