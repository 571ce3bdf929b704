"""A search as a user runs it, on the shipped reference model: small, but with every stage of it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_reference import Clone, clone

SMALL = (
    "search=nsga2",
    "device=[pixel-8]",
    "supernet.steps=4",
    "supernet.batch=4",
    "supernet.importance_batches=1",
    "supernet.checkpoint_every=2",
    "supernet.threads=1",
    "search.trials=10",
    "search.population=5",
    "search.seeds=[1]",
    "search.images=16",
    "search.beat_random=null",
    "shortlist.refine=1",
    "recover.training.steps=4",
    "recover.training.batch=4",
    "recover.training.checkpoint_every=2",
    "recover.images=16",
    "calibrate.samples=8",
    "questions.per_task=3",
    "validate.gates=[{metric: parity.top1, task: null, min: 0.9, max: null}]",
    "tracking=none",
)
SEARCHED = "artifacts/build/search/trials.jsonl"
RECOVERED = "artifacts/build/recover/model.safetensors"


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    found = clone(tmp_path_factory.mktemp("search"), "first", threads="1", seed="1")
    result = found.tapeout("build", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "the frontier:" in result.stdout + result.stderr  # in the build's summary
    return found


def built(found: Clone, *overrides: str, status: int = 0) -> dict[str, str]:
    """{node: built or cached} of a build with these overrides behind SMALL."""
    result = found.tapeout("build", "--json", *SMALL, *overrides)
    assert result.returncode == status, result.stderr
    return {node["name"]: node["status"] for node in json.loads(result.stdout)["nodes"]}


@pytest.mark.slow
def test_a_second_build_finds_the_search_and_a_budget_tries_nothing_again(searched: Clone) -> None:
    assert set(built(searched).values()) == {"cached"}
    nodes = built(searched, "device.pixel-8.budgets.size_mib=0.6")
    assert nodes["supernet"] == nodes["search"] == "cached"
    assert nodes["shortlist"] == "built"
    nodes = built(searched, "recover.images=8")
    assert nodes["search"] == nodes["shortlist"] == "cached"
    assert nodes["recover"] == "built"


def test_a_budget_that_nothing_keeps_is_told_with_what_comes_nearest(tmp_path: Path) -> None:
    found = clone(tmp_path, "none", threads="1", seed="3")
    result = found.tapeout("build", *SMALL, "device.pixel-8.budgets.size_mib=0.1")
    assert result.returncode == 1
    assert "none of" in result.stderr and "The nearest misses device.pixel-8.budgets.size_mib" in result.stderr
    assert "Traceback" not in result.stderr
    assert (found.folder / SEARCHED).read_text().count("\n") >= 10  # what was tried is kept


@pytest.mark.slow
def test_what_was_found_is_an_ordinary_checkpoint(searched: Clone) -> None:
    built(searched)
    found = searched.folder / "artifacts/build/recover"
    small, full = (json.loads((each / "config.json").read_text()) for each in (found, Path("artifacts/reference")))
    assert small != full and small.keys() == full.keys()


@pytest.mark.slow
def test_what_was_found_is_built_alone(searched: Clone, tmp_path: Path) -> None:
    built(searched)
    found = searched.folder / "artifacts/build/recover"
    own = clone(tmp_path, "second", threads="1", seed="2")
    alone = tuple(each for each in SMALL if not each.startswith(("search", "supernet", "recover")))
    result = own.tapeout("build", *alone, f"model.path={found}")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_search_that_does_not_beat_chance_by_enough_fails(searched: Clone) -> None:
    result = searched.tapeout("build", *SMALL, "search.beat_random=100")
    assert result.returncode == 1
    assert "search.hypervolume_ratio" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_it_ends_with_the_same_bytes(seed: int, searched: Clone, tmp_path: Path) -> None:
    other = clone(tmp_path, "killed", threads="1", seed=str(seed))
    drawn = random.Random(seed)
    for _ in range(4):
        build = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "build", *SMALL],
            cwd=other.folder,
            env=other.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(drawn.uniform(4, 40))
        os.killpg(build.pid, signal.SIGKILL)
        build.wait()
    built(other)
    built(searched)
    for name in (SEARCHED, RECOVERED, "artifacts/build/supernet/supernet.safetensors"):
        assert (other.folder / name).read_bytes() == (searched.folder / name).read_bytes(), name


@pytest.mark.slow
def test_four_workers_on_ray_find_what_one_finds_here(searched: Clone, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    here, there = (clone(tmp_path, name, threads="1", seed="3") for name in ("here", "there"))
    built(here, "executor.jobs=1")
    built(there, "executor=ray", "executor.local_nodes=4")
    for name in (SEARCHED, RECOVERED):
        assert (here.folder / name).read_bytes() == (there.folder / name).read_bytes(), name
