"""What a search's trials come to: fronts and hypervolumes, and which of them a device can have."""

import json
import tempfile
from dataclasses import replace
from math import isclose, prod
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError, StageError
from pipelines.workspace import Workspace
from stages import checks
from stages.schema import Budgets, DeviceProfile, LatencySource, ShortlistConfig
from stages.search_artifacts import Trials
from stages.searching.hypervolume import CORNER, hypervolume, kendall_tau
from stages.searching.plot import plot
from stages.searching.ranking import ranked, summary
from stages.searching.trials import Cost, Score, Trial, dominates, front, point, read_trials, write_trials
from stages.shortlist import shortlist
from tests.conf import group
from tests.supernets import score, shortlist_config, trial

GRID = st.integers(0, 6).map(lambda value: value / 5)  # 1.2 is beyond the corner
POINTS = st.lists(st.tuples(GRID, GRID, GRID), max_size=8)


def brute_force(points: list[tuple[float, float, float]]) -> float:
    """Of points on the grid: its cells, counted."""
    cells = [(x, y, z) for x in range(5) for y in range(5) for z in range(5)]
    inside = [any(all(p <= c / 5 + 1e-9 for p, c in zip(each, cell, strict=True)) for each in points) for cell in cells]
    return sum(inside) / 125


@given(points=POINTS)
def test_a_hypervolume_is_the_volume_that_points_dominate(points: list[tuple[float, float, float]]) -> None:
    assert isclose(hypervolume(points), brute_force(points), abs_tol=1e-9)


@given(points=POINTS, seed=st.integers(0, 99))
def test_neither_order_nor_dominated_points_change_a_hypervolume(
    points: list[tuple[float, float, float]], seed: int
) -> None:
    volume, random = hypervolume(points), Random(seed)
    worse = [tuple(min(1.2, value + random.random()) for value in each) for each in points]
    mixed: list[Any] = points + worse + points
    random.shuffle(mixed)
    assert isclose(hypervolume(mixed), volume, abs_tol=1e-9)
    assert hypervolume([*points, (0.0, 0.0, 0.0)]) == pytest.approx(1.0)


def test_hypervolumes_of_many_points_agree_with_a_sample() -> None:
    random = Random(1)
    points = [(random.random(), random.random(), random.random()) for _ in range(12)]
    draws = [[random.random() for _ in range(3)] for _ in range(20_000)]
    hits = sum(any(all(p <= d for p, d in zip(each, draw, strict=True)) for each in points) for draw in draws)
    assert hypervolume(points) == pytest.approx(hits / len(draws), abs=0.012)
    assert hypervolume([(0.25, 0.5, 0.75)]) == prod((0.75, 0.5, 0.25))
    assert hypervolume([]) == hypervolume([CORNER]) == hypervolume([(0.0, 0.0, 1.0)]) == 0
    assert hypervolume([(1.0, 1.0, 1.0)], corner=(2.0, 2.0, 2.0)) == 1.0


TRIALS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4), st.booleans()), max_size=10)


def trials_of(values: list[tuple[int, int, int, bool]]) -> list[Trial]:
    return [trial(a / 4, b / 4, c / 4, {"depth": place}, whole) for place, (a, b, c, whole) in enumerate(values)]


@given(values=TRIALS)
def test_a_front_is_what_nothing_dominates(values: list[tuple[int, int, int, bool]]) -> None:
    every = trials_of(values)
    kept, whole = front(every), [each for each in every if each.score.whole]
    assert all(not dominates(one, other) for one in kept for other in kept)
    assert all(any(dominates(one, other) for one in kept) or other in kept for other in whole)
    assert all(each in whole for each in kept)  # nothing that was given up
    shares = [each.cost.byte_share for each in kept]
    assert shares == sorted(shares)
    assert hypervolume(map(point, kept)) == pytest.approx(hypervolume(map(point, whole)))
    assert {each.architecture["depth"] for each in front(every[::-1])} == {each.architecture["depth"] for each in kept}


@given(values=TRIALS)
def test_dominance_is_a_strict_order(values: list[tuple[int, int, int, bool]]) -> None:
    every = trials_of(values)
    for one in every:
        assert not dominates(one, one)
        for other in every:
            assert not (dominates(one, other) and dominates(other, one))
            for third in every:
                assert not (dominates(one, other) and dominates(other, third)) or dominates(one, third)


def test_a_front_has_each_architecture_once_and_can_be_of_losses() -> None:
    twice = [trial(0.5, 0.5, 0.5), trial(0.5, 0.5, 0.5)]
    assert front(twice) == twice[:1]
    one, other = trial(0.9, 0.5, 0.5, {"depth": 1}, loss=2.0), trial(0.1, 0.5, 0.5, {"depth": 2}, loss=1.0)
    assert front([one, other]) == [one] and front([one, other], "loss") == [other]


@given(values=TRIALS)
def test_trials_are_read_as_they_were_written(values: list[tuple[int, int, int, bool]]) -> None:
    every = trials_of(values)
    with tempfile.TemporaryDirectory() as folder:
        write_trials(Path(folder) / "trials.jsonl", every)
        assert read_trials(Path(folder) / "trials.jsonl") == every


def test_equal_trials_are_equal_pictures(tmp_path: Path) -> None:
    every = trials_of([(1, 2, 3, True), (2, 3, 4, True), (4, 4, 4, False)])
    for name in ("one", "other"):
        plot(tmp_path / f"{name}.svg", every, front(every))
    picture = (tmp_path / "one.svg").read_bytes()
    assert picture == (tmp_path / "other.svg").read_bytes() and b"frontier" in picture
    plot(tmp_path / "none.svg", every[2:], [])


DEVICE: DeviceProfile = group("device", "pixel-8")
ANSWERS = {"encode_ms": 10.0, "first_token_ms": 20.0, "token_ms": 2.0, "answer_ms": 34.0}


def budgets(**values: float) -> DeviceProfile:
    none = {"size_mib": None, "memory_mib": None, "token_ms": None, "first_token_ms": None, "encode_ms": None}
    return replace(DEVICE, budgets=Budgets(**{**none, **values}))


def searched(path: Path, latency: bool = True) -> Trials:
    """Ten sizes, whose every cost grows by a tenth, and an accuracy that does; the best of all was given up."""
    path.mkdir()
    times = {"pixel-8": ANSWERS} if latency else {}
    full = Cost(1000, {"pixel-8": 10 * 2**20}, times, 1.0, 1.0)
    every = [trial(0.99, 1.0, 1.0, {"depth": 0}, whole=False)]
    for tenths in (3, 1, 2, 4, 5, 6, 7, 8, 9, 10):
        share = tenths / 10
        part = {"pixel-8": {name: value * share for name, value in ANSWERS.items()}} if latency else {}
        cost = Cost(100 * tenths, {"pixel-8": tenths * 2**20}, part, share, share)
        every.append(Trial("nsga2", 1, tenths, {"depth": tenths}, score(share), cost))
    every[0] = replace(every[0], cost=every[1].cost)
    result = Trials(path)
    write_trials(path / "trials.jsonl", [*every, replace(every[3], by="random")])
    result.write_json("search.json", {"full": json.loads(json.dumps(vars(full)))})
    return result


def listed(
    trials: Trials,
    path: Path,
    device: DeviceProfile,
    bytes_: float | None = None,
    latency: float | None = None,
    candidates: int = 2,
) -> list[int]:
    path.mkdir()
    config = shortlist_config(candidates, bytes_, latency)
    made = shortlist(trials, config, device, Workspace(path, path / "scratch")).candidates()
    return [each["architecture"]["depth"] for each in made]


@pytest.mark.parametrize(
    ("bounds", "profile", "expected"),
    [
        ({}, {}, [10, 9]),
        ({"bytes_": 0.7}, {}, [7, 6]),
        ({"latency": 0.45}, {}, [4, 3]),
        ({"bytes_": 0.7, "latency": 0.45}, {}, [4, 3]),
        ({"bytes_": 1.0}, {"size_mib": 5.0}, [5, 4]),
        ({}, {"token_ms": 0.5}, [2, 1]),
        ({}, {"first_token_ms": 7.0}, [3, 2]),
        ({}, {"encode_ms": 1.0}, [1]),
        ({"bytes_": 0.3, "candidates": 1}, {"encode_ms": 100.0}, [3]),
    ],
    ids=str,
)
def test_every_kind_of_budget_binds(
    bounds: dict[str, Any], profile: dict[str, float], expected: list[int], tmp_path: Path
) -> None:
    assert listed(searched(tmp_path / "trials"), tmp_path / "out", budgets(**profile), **bounds) == expected


def test_without_latency_bytes_alone_are_bounds(tmp_path: Path) -> None:
    trials = searched(tmp_path / "trials", latency=False)
    assert listed(trials, tmp_path / "out", budgets(), bytes_=0.7, latency=0.1) == [7, 6]


def test_candidates_say_nothing_of_their_device(tmp_path: Path) -> None:
    """So that devices with the same candidates recover them once."""
    path = tmp_path / "out"
    path.mkdir()
    config, work = shortlist_config(1, 0.5), Workspace(path, tmp_path / "scratch")
    (found,) = shortlist(searched(tmp_path / "trials"), config, budgets(), work).candidates()
    assert found == {
        "architecture": {"depth": 5},
        "score": {"accuracy": 0.5, "loss": 1.0, "questions": 64, "whole": True},
        "parameters": 500,
    }


def test_what_no_trial_keeps_names_the_nearest(tmp_path: Path) -> None:
    trials = searched(tmp_path / "trials")
    with pytest.raises(StageError) as error:
        listed(trials, tmp_path / "out", budgets(size_mib=0.5, token_ms=1.0), latency=0.05)
    text = str(error.value)
    assert "pixel-8: none of 10 architectures keeps the budgets" in text
    assert "depth 1" in text and "10.0 % right" in text
    assert "misses device.pixel-8.budgets.size_mib 1 (at most 0.5), shortlist.latency 0.1 (at most 0.05)" in text
    assert "keeps device.pixel-8.budgets.token_ms 0.2 (at most 1)" in text
    assert error.value.hint.startswith("Allow 2.00 times as much")


def test_other_budgets_choose_among_the_same_trials(tmp_path: Path) -> None:
    """None of which is written again."""
    trials = searched(tmp_path / "trials")
    before = {path.name: path.read_bytes() for path in trials.path.iterdir()}
    for place, share in enumerate((0.9, 0.5, 0.2)):
        assert listed(trials, tmp_path / str(place), budgets(), bytes_=share, candidates=1) == [round(share * 10)]
    assert {path.name: path.read_bytes() for path in trials.path.iterdir()} == before


@pytest.mark.parametrize("change", [{"candidates": 0}, {"bytes": 0.0}, {"latency": -1.0}], ids=str)
def test_a_shortlist_that_lists_nobody_is_refused_at_plan_time(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"shortlist.{next(iter(change))}"):
        checks.shortlist(replace(shortlist_config(), **change), budgets())
    checks.shortlist(shortlist_config(latency=0.5), budgets())


def told(latency: LatencySource) -> ShortlistConfig:
    config = shortlist_config(latency=0.5)
    return replace(config, search=replace(config.search, latency=latency))


def test_bounds_on_what_nobody_knows_are_refused_at_plan_time() -> None:
    checks.shortlist(told(LatencySource.none), budgets(size_mib=1.0))
    with pytest.raises(ConfigError, match=r"budgets.token_ms bounds the latency, and search.latency is none"):
        checks.shortlist(told(LatencySource.none), budgets(token_ms=1.0))
    unknown = replace(budgets(), hardware=replace(budgets().hardware, bandwidth_gb_s=None))
    with pytest.raises(ConfigError, match=r"without hardware.bandwidth_gb_s"):
        checks.shortlist(told(LatencySource.predicted), unknown)
    checks.shortlist(told(LatencySource.host), unknown)


CANDIDATE = {"architecture": {"depth": 2}, "parameters": 500_000}


def candidates(*accuracies: float) -> list[dict[str, Any]]:
    return [{**CANDIDATE, "score": vars(score(each))} for each in accuracies]


def test_the_most_accurate_after_recovery_is_chosen() -> None:
    ranking = ranked(candidates(0.9, 0.8, 0.7), [score(0.5), score(0.7, loss=2.0), score(0.7, loss=1.0)])
    assert ranking["chosen"] == 2 and ranking["tau"] == pytest.approx(kendall_tau([3, 2, 1], [1, 2, 2]))
    assert ranking["tau"] < 0
    assert [row["recovered"]["accuracy"] for row in ranking["candidates"]] == [0.5, 0.7, 0.7]
    lines = summary(ranking)
    assert [line.startswith("chosen") for line in lines] == [False, False, True, False]
    assert "70.0 % right (70.0 % in the supernet), 0.50 M parameters: depth 2" in lines[2] and "tau" in lines[3]


def test_two_candidates_and_ties_have_no_tau() -> None:
    two = ranked(candidates(0.9, 0.8), [Score(0.5, 1.0, 4, True)] * 2)
    assert two["tau"] is None and two["chosen"] == 0 and len(summary(two)) == 2
    assert ranked(candidates(0.9, 0.8, 0.7), [score(0.5)] * 3)["tau"] is None
    assert kendall_tau([1, 2, 3], [4, 5, 6]) == pytest.approx(1) and kendall_tau([1, 2, 3], [3, 2, 1]) == -1
