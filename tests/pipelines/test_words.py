"""What a build says: figures, progress, tables and gates in words."""

from typing import Any

import pytest

from pipelines.display import share
from pipelines.gates import describe
from pipelines.numbers import significant
from pipelines.tables import estimate, measured_lines
from pipelines.workspace import Progress


@pytest.mark.parametrize(
    ("value", "digits", "said"),
    [
        (4540.2, 3, "4540"),
        (14_012.0, 3, "14000"),
        (477.6, 3, "478"),
        (0.01234, 3, "0.0123"),
        (999.7, 3, "1000"),
        (-25_000_000.0, 3, "-25000000"),
        (96_468_992, 6, "96469000"),
        (0, 3, "0"),
        (8, 6, "8"),
        (1.97, 6, "1.97"),
    ],
)
def test_figures_have_no_exponent(value: float, digits: int, said: str) -> None:
    assert significant(value, digits) == said


def test_a_prediction_and_its_interval() -> None:
    assert estimate({"value": 4538.1, "low": 478.2, "high": 14_012.0}) == "4540 [478, 14000]"
    assert estimate(25_123.4) == "25100" and estimate(None) == "-"


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress(3.14118e8, 1.7052e9, "operations"), "18 % operations"),
        (Progress(5000, 10_000, "steps"), "5000 of 10000 steps"),
        (Progress(10_001, 10_001), "100 %"),
        (Progress(7, 0, "rounds"), "7 rounds"),
        (Progress(3.2e8, 0), "320000000"),
    ],
)
def test_progress_of_many_units_is_a_share(progress: Progress, said: str) -> None:
    assert share(progress) == said


GATE = {"metric": "budget.token_ms", "task": None, "value": 1.97, "bound": 0.01, "kind": "max", "passed": False}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "budget.token_ms is 1.97, above 0.01"),
        ({"predicted": False, "end": "value"}, "budget.token_ms is 1.97, above 0.01"),
        (
            {"predicted": True, "end": "high"},
            "budget.token_ms is 1.97, the high end of what is predicted, above 0.01",
        ),
        (
            {"predicted": True, "end": "value", "kind": "min", "bound": 3e6},
            "budget.token_ms is 1.97, the middle of what is predicted, below 3000000",
        ),
        (
            {"predicted": True, "end": "low", "kind": "min", "bound": 3},
            "budget.token_ms is 1.97, the low end of what is predicted, below 3",
        ),
    ],
)
def test_a_gate_says_which_end_of_a_prediction_it_looked_at(more: dict[str, Any], said: str) -> None:
    assert describe({**GATE, **more}) == said


@pytest.mark.parametrize("long", ["ocr", "ocr_unseen_fonts", "a_task_with_quite_a_long_name"])
def test_columns_stay_under_their_titles(long: str) -> None:
    task = {"n": 1200, "fp32": 0.5, "artifact": 0.5, "retention": 1.0, "retention_low": 0.9, "retention_high": 1.0}
    head, *rows = measured_lines({"tasks": {"count": task, long: task}})
    places = {line.index(word) + len(word) for line, word in [(head, " n"), *((row, " 1200") for row in rows)]}
    assert len(places) == 1 and len(rows) == 2
    assert all(row.index("[90.0 %") == head.index("95 % interval") for row in rows)
