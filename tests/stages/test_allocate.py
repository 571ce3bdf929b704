"""Automatic allocation: the knapsack is exact, budgets hold to the byte, floors hold, and the words say why."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError, StageError
from pipelines.workspace import Workspace
from stages import checks
from stages.allocate import allocate
from stages.artifacts import Allocation, Calibration, Checkpoint, Sensitivity
from stages.calibrate import calibrate
from stages.models.vlm import ModelConfig
from stages.quantize import quantize
from stages.quantizers import knapsack
from stages.quantizers.choices import Choice
from stages.quantizers.knapsack import solve
from stages.schema import Format, Method
from stages.sensitivity import sensitivity
from tests.tiny import group, workspace
from tests.toy import narrow_config, toy_checkpoint

CANDIDATES = [
    {"method": "rtn", "format": "affine", "bits": 8, "group_size": 0, "symmetric": True},
    {"method": "gptq", "format": "affine", "bits": 4, "group_size": 32},
    {"method": "gptq", "format": "affine", "bits": 2, "group_size": 0},
    {"method": "gptq", "format": "palette", "bits": 3, "group_size": 0},
    {"method": "kmeans", "format": "palette", "bits": 2, "group_size": 16},
]
RUN = {"damping": 0.01, "activation_order": True, "scale_search": False, "refinement": 0, "importance": "uniform"}

option = st.tuples(st.integers(0, 60), st.floats(0, 10))
items = st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=6)


def brute_force(problem: list[list[tuple[int, float]]], budget: int) -> float | None:
    costs = [
        sum(cost for _, cost in picked)
        for picked in itertools.product(*problem)
        if sum(size for size, _ in picked) <= budget
    ]
    return min(costs, default=None)


@given(items, st.integers(0, 250), st.sampled_from([1, 7]))
@settings(deadline=None, max_examples=100)
def test_the_knapsack_is_exact(problem: list[list[tuple[int, float]]], budget: int, unit: int) -> None:
    problem = [[(size * unit, cost) for size, cost in options] for options in problem]
    places, least = solve(problem, budget * unit), brute_force(problem, budget * unit)
    if places is None:
        assert least is None
        return
    picked = [options[place] for options, place in zip(problem, places, strict=True)]
    assert sum(size for size, _ in picked) <= budget * unit
    assert least is not None and math.isclose(sum(cost for _, cost in picked), least, abs_tol=1e-9)


@given(items, st.integers(0, 250))
@settings(deadline=None, max_examples=100)
def test_rounded_sizes_keep_the_budget(problem: list[list[tuple[int, float]]], budget: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "_UNITS", 8)
        places = solve(problem, budget)
    smallest = sum(min(size for size, _ in options) for options in problem)
    assert (places is None) == (smallest > budget)
    if places is not None:
        assert sum(options[place][0] for options, place in zip(problem, places, strict=True)) <= budget


class Made:
    """The toy model, or another, measured once; what a budget makes of it for a device."""

    def __init__(self, path: Path, config: ModelConfig | None = None):
        self.path = path
        self.checkpoint: Checkpoint = toy_checkpoint(path / "checkpoint", layers=2, config=config)
        drawn = group("calibrate", "default", samples=8, batch=8)
        self.calibration: Calibration = calibrate(self.checkpoint, drawn, workspace(path / "calibrate" / "out"))
        self.config = group("sensitivity", "default", samples=8, batch=8, candidates=CANDIDATES, **RUN)
        out = workspace(path / "sensitivity" / "out")
        self.sensitivity: Sensitivity = sensitivity(self.checkpoint, self.calibration, self.config, out)
        self.count, self.known = 0, {}

    def allocation(self, device: str = "iphone-15-pro", again: bool = False, **changes: Any) -> Allocation:
        """Once for the same arguments, unless `again`; `sensitivity`: another than this one's."""
        key = json.dumps([device, changes], default=str)
        if key not in self.known or again:
            self.count += 1
            measured = changes.pop("sensitivity", self.sensitivity)
            config, out = self.quantize(**changes), workspace(self.path / f"allocate-{self.count}" / "out")
            profile = group("device", device)
            self.known[key] = allocate(measured, self.checkpoint, self.calibration, config, profile, out)
        return self.known[key]

    def quantize(self, **changes: Any) -> Any:
        bounds = {"bits": None, "bytes": None, "kl": None, **changes.pop("budget")}
        return group("quantize", "int4", method="auto", budget=bounds, **(RUN | changes))

    def bytes_of(self, allocation: Allocation, **changes: Any) -> int:
        """As quantize stores it."""
        self.count += 1
        out = workspace(self.path / f"quantize-{self.count}" / "out")
        return (
            quantize(self.checkpoint, self.quantize(**changes), out, self.calibration, allocation).store().total_bytes()
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("allocate"))


@pytest.mark.parametrize("device", [pytest.param("iphone-15-pro", marks=pytest.mark.slow), "pixel-8"])
@pytest.mark.parametrize("bits", [3.2, pytest.param(5.0, marks=pytest.mark.slow)])
def test_a_budget_is_kept_to_the_byte(made: Made, device: str, bits: float) -> None:
    budget = {"bits": bits}
    found = made.allocation(device, budget=budget)
    told = found.read_json("frontier.json")["chosen"]
    stored = made.bytes_of(found, budget=budget)
    assert stored == told["bytes"] <= bits * made.sensitivity.table()["parameters"] / 8
    exact = made.allocation(device, budget={"bytes": stored})
    assert made.bytes_of(exact, budget={"bytes": stored}) <= stored


def test_both_matrices_of_a_head_are_one_group(tmp_path: Path) -> None:
    """And get bits within a budget, as all others do."""
    made = Made(tmp_path, narrow_config())
    found = made.allocation(budget={"bits": 4.0})
    chosen, told = found.choices(), found.read_json("frontier.json")["chosen"]
    assert {"text.lm_head.down.weight", "text.lm_head.up.weight"} <= chosen.keys()
    assert made.bytes_of(found, budget={"bits": 4.0}) == told["bytes"] <= made.sensitivity.table()["parameters"] / 2
    assert "output head" in made.sensitivity.table()["groups"]


def test_a_device_gets_what_it_takes(made: Made) -> None:
    pixel = made.allocation("pixel-8", budget={"bits": 5.0}).choices()
    assert all(choice.format is Format.affine and choice.bits in (0, 2, 4, 8) for choice in pixel.values())
    phone = made.allocation(budget={"bits": 3.2}).choices()
    columns = {name: entry["group_size"] for name, entry in _rows(made).items()}
    assert any(choice.format is Format.palette for choice in phone.values())
    in_blocks = [
        name
        for name, choice in phone.items()
        if choice.bits and choice.format is Format.affine and choice.group_size < columns[name]
    ]
    assert not in_blocks  # on the Neural Engine, scales for each block gave wrong numbers


def _rows(made: Made) -> dict[str, Any]:
    """The 8-bit candidate of each weight, whose group is a row."""
    return {
        name: next(row["choice"] for row in entry["candidates"] if row["choice"]["bits"] == 8)
        for name, entry in made.sensitivity.table()["weights"].items()
    }


def test_a_floor_is_kept_by_fewer_bytes_than_any_uniform_choice(made: Made) -> None:
    uniform = made.allocation("pixel-8", budget={"bits": 5.0}).read_json("frontier.json")["uniform"]
    floor = sorted(row["high"] for row in uniform)[len(uniform) // 2]
    found = made.allocation("pixel-8", budget={"kl": floor}).read_json("frontier.json")["chosen"]
    assert found["kl"] <= found["high"] <= floor
    # uniform choices are held to one half of the questions only, an allocation to both
    assert found["bytes"] <= 1.02 * min(row["bytes"] for row in uniform if row["high"] <= floor)


IMPOSSIBLE = [
    ({"bits": 0.5}, "with the smallest candidate of every weight the model takes"),
    ({"bytes": 10}, "the budget is 10 bytes"),
    ({"kl": 1e-12, "bits": 3.2}, "no allocation of at most"),
]


@pytest.mark.parametrize(("budget", "part"), IMPOSSIBLE)
def test_what_cannot_be_is_said_with_what_can(made: Made, budget: dict[str, float], part: str) -> None:
    with pytest.raises(StageError) as caught:
        made.allocation(budget=budget)
    assert part in str(caught.value)
    assert "Set quantize.budget." in caught.value.hint
    if "kl" not in budget:  # the smallest that is named is feasible
        smallest = int(caught.value.hint.partition("budget.bytes=")[2].split()[0])
        assert made.allocation(budget={"bytes": smallest}).read_json("frontier.json")["chosen"]["bytes"] == smallest


def test_the_same_bytes_again_also_after_a_kill(made: Made, tmp_path: Path) -> None:
    def stopping(event: Any) -> None:
        if "text mlp" in getattr(event, "text", ""):
            raise KeyboardInterrupt

    scratch = tmp_path / "scratch"
    (tmp_path / "first").mkdir()
    with pytest.raises(KeyboardInterrupt):
        sensitivity(made.checkpoint, made.calibration, made.config, Workspace(tmp_path / "first", scratch, stopping))
    assert (scratch / "measured.jsonl").stat().st_size > 0
    (tmp_path / "second").mkdir()
    again = sensitivity(made.checkpoint, made.calibration, made.config, Workspace(tmp_path / "second", scratch))
    assert again.table() == made.sensitivity.table()
    first, second = (made.allocation(budget={"bits": 3.2}, again=again) for again in (False, True))
    names = ["allocation.json", "allocation.md", "frontier.json", "frontier.svg"]
    assert sorted(path.name for path in first.path.iterdir()) == names
    assert all((first.path / name).read_bytes() == (second.path / name).read_bytes() for name in names)


def test_words_name_the_weights(made: Made) -> None:
    found = made.allocation(budget={"bits": 3.2})
    words = (found.path / "allocation.md").read_text()
    assert "3.2 bits a parameter" in words and "% of the total" in words
    assert all(name in words for name in found.choices())
    svg = (found.path / "frontier.svg").read_text()
    assert "uniform choices" in svg and "<dc:date>" not in svg


def test_an_override_comes_first(made: Made) -> None:
    kept = {"overrides": [{"pattern": "text.lm_head.weight", "bits": 0}], "budget": {"bits": 5.0}}
    found = made.allocation(**kept)
    assert found.choices()["text.lm_head.weight"].bits == 0
    assert made.bytes_of(found, **kept) == found.read_json("frontier.json")["chosen"]["bytes"]


def test_without_running_the_model(made: Made) -> None:
    config = group("sensitivity", "default", measure="fisher", candidates=CANDIDATES, **RUN)
    out = workspace(made.path / "fisher" / "out")
    ranked = sensitivity(made.checkpoint, made.calibration, config, out)
    found = made.allocation(sensitivity=ranked, budget={"bits": 3.2})
    chosen = found.read_json("frontier.json")["chosen"]
    assert chosen["kl"] is None and chosen["bits"] <= 3.2
    assert "estimated" in (found.path / "allocation.md").read_text()
    with pytest.raises(StageError, match="measured nothing"):
        made.allocation(sensitivity=ranked, budget={"kl": 0.1})


def test_choices_survive_their_file(made: Made) -> None:
    found = made.allocation(budget={"bits": 3.2})
    assert json.loads((found.path / "allocation.json").read_text()).keys() == found.choices().keys()
    assert all(isinstance(choice, Choice) for choice in found.choices().values())
    assert {choice.method for choice in found.choices().values()} <= set(Method)


REFUSED = [
    ({"samples": 0}, "sensitivity.samples is 0"),
    ({"prune": 0.5}, "sensitivity.prune is 0.5"),
    ({"candidates": []}, "sensitivity.candidates is empty"),
    ({"candidates": [CANDIDATES[1] | {"bits": 5}]}, "5 bits of affine"),
    ({"candidates": [CANDIDATES[1] | {"bits": 0}]}, "0 bits"),
    ({"candidates": [CANDIDATES[1] | {"method": "awq"}]}, "awq scales inputs"),
    ({"candidates": [CANDIDATES[1] | {"method": "kmeans"}]}, "does not make format affine"),
]


@pytest.mark.parametrize(("changes", "part"), REFUSED)
def test_the_plan_refuses(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        checks.sensitivity(group("sensitivity", "default", **(RUN | {"candidates": CANDIDATES} | changes)))
