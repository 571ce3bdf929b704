"""The supernet: all subnets of a toy model trained together, stopped and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.errors import ConfigError, StageError
from pipelines.workspace import Event, Metric, Progress, Workspace
from stages import checks
from stages.artifacts import Checkpoint
from stages.elastic.view import FACTORS
from stages.schema.search import SupernetConfig
from stages.search_artifacts import Supernet
from stages.supernet import supernet
from tests.reader import reader, workspace
from tests.supernets import made, questions, space_config, supernet_config
from tests.toy import toy_checkpoint

torch.set_num_threads(1)
FILES = {"supernet.safetensors", "space.json", "config.json", "tokenizer.json", "preprocessing.json"}


def trained(**changes: Any) -> SupernetConfig:
    usual = {"steps": 6, "log_every": 2, "checkpoint_every": 2, "learning_rate": 1e-3, "warmup": 2}
    return supernet_config(**{**usual, **changes})


def run(folder: Path, **changes: Any) -> Supernet:
    """Also what a process of its own does, and is killed at."""
    checkpoint, config = Checkpoint(folder / "checkpoint"), trained(**changes)
    return supernet(checkpoint, config, workspace(folder), questions(checkpoint))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def loss(model: Supernet, checkpoint: Checkpoint, architecture: dict[str, int]) -> float:
    """On questions that no training here asks."""
    source = questions(checkpoint, batch=8, seed=99)
    (batch,) = source.batches(0, 1)
    with torch.no_grad():
        outputs = model.elastic().answers(model.space().configured(architecture), partial(source.outputs, batch=batch))
    return float(torch.nn.functional.cross_entropy(outputs.logits, source.targets(batch).labels))


def test_no_step_sorts_and_trains_nothing(tmp_path: Path) -> None:
    checkpoint, model = made(tmp_path)
    assert {path.name for path in model.path.iterdir()} == FILES
    tensors = load_file(model.weights)
    for name, value in checkpoint.model().state_dict().items():
        assert torch.equal(value.flatten().sort()[0], tensors[name].flatten().sort()[0]), name
    assert tensors.keys() == {*checkpoint.model().state_dict(), *FACTORS}
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    _, again = made(tmp_path / "again")
    assert files(again.path) == files(model.path)


def test_training_makes_subnets_better_and_changes_all_tensors(tmp_path: Path) -> None:
    reader(tmp_path / "checkpoint")
    checkpoint, events = Checkpoint(tmp_path / "checkpoint"), list[Event]()
    before = run(tmp_path, steps=0)
    (tmp_path / "trained").mkdir()
    after = supernet(
        checkpoint,
        trained(steps=20, log_every=5, learning_rate=3e-3, batch=4, hard_share=1.0, features=0.0, hidden=0.0),
        Workspace(tmp_path / "trained", tmp_path / "scratch-of-it", events.append),
        questions(checkpoint),
    )
    space = before.space()
    for architecture in (space.smallest, space.largest):
        assert loss(after, checkpoint, architecture) < loss(before, checkpoint, architecture) - 0.5
    first, last = load_file(before.weights), load_file(after.weights)
    assert all(not torch.equal(last[name], value) for name, value in first.items())
    assert (before.path / "space.json").read_bytes() == (after.path / "space.json").read_bytes()
    metrics = [event for event in events if isinstance(event, Metric)]
    assert {event.step for event in metrics} == {5, 10, 15, 20}
    assert [event.done for event in events if isinstance(event, Progress)] == [5, 10, 15, 20]


@pytest.mark.slow
def test_a_run_killed_outright_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        reader(tmp_path / name / "checkpoint")
    run(tmp_path / "whole")
    state = tmp_path / "killed/scratch/supernet.pt"
    command = [
        sys.executable,
        "-c",
        f"from tests.stages.test_supernet import *; run(Path({str(tmp_path / 'killed')!r}))",
    ]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    while not state.exists() and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < torch.load(state, weights_only=True)["step"] < trained().steps
    run(tmp_path / "killed")
    assert files(tmp_path / "killed/out") == files(tmp_path / "whole/out")


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    reader(tmp_path / "checkpoint")
    with pytest.raises(StageError, match=r"supernet: the loss is (nan|inf) at step") as error:
        run(tmp_path, learning_rate=1e20, warmup=1, steps=8)
    assert "supernet.learning_rate" in error.value.hint


def test_models_that_cannot_be_searched_are_refused(tmp_path: Path) -> None:
    reader(tmp_path / "checkpoint")
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    whole = {name: [1] for name in vars(space_config()) if name != "multiple"}
    config = supernet_config(space_config(**whole))
    with pytest.raises(ConfigError, match="no dimension that could shrink"):
        supernet(checkpoint, config, workspace(tmp_path / "work"))
    described = json.loads((checkpoint.path / "config.json").read_text())
    checkpoint.write_json("config.json", {**described, "vision": None, "architecture": "qwen2"})
    with pytest.raises(StageError, match="no tower"):
        supernet(checkpoint, trained(), workspace(tmp_path / "work"))


def test_prompts_that_the_questions_are_not_made_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="16 tokens"):
        supernet(toy_checkpoint(tmp_path / "bytes"), trained(), workspace(tmp_path / "work"))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1},
        {"batch": 0},
        {"importance_batches": 0},
        {"learning_rate": 0.0},
        {"random": -1},
        {"space": space_config(tower_ffn=[1, 1.5])},
        {"space": space_config(multiple=0)},
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused_at_plan_time(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"supernet.{next(iter(change))}") as error:
        checks.supernet(supernet_config(**change))
    assert error.value.hint
    checks.supernet(trained())
    checks.supernet(supernet_config())
