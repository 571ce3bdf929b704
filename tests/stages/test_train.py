"""Training: learns, survives a kill with the same result, and leaves a whole checkpoint."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.workspace import Event, Log, Workspace
from stages.models.training import learning_rate
from stages.schema import TrainConfig
from stages.train import train

CONFIG = TrainConfig(
    steps=6,
    batch=3,
    learning_rate=1e-3,
    weight_decay=0.05,
    warmup=2,
    seed=1,
    threads=1,
    log_every=2,
    checkpoint_every=2,
)


def workspace(folder: Path, stop_at: str = "") -> Workspace:
    def send(event: Event) -> None:
        if stop_at and isinstance(event, Log) and event.text.startswith(f"step {stop_at}:"):
            raise KeyboardInterrupt

    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return Workspace(folder / "out", folder / "scratch", send)


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = train(CONFIG, workspace(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, workspace(tmp_path / "killed", stop_at="4"))
    assert (tmp_path / "killed/scratch/state.pt").exists()
    resumed = train(CONFIG, workspace(tmp_path / "killed"))
    names = {path.name for path in whole.path.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "preprocessing.json", "training.jsonl"}
    for name in names:
        assert (whole.path / name).read_bytes() == (resumed.path / name).read_bytes(), name
    assert resumed.model().config.vision.tokens == 72


@pytest.mark.slow
def test_another_seed_is_another_model(tmp_path: Path) -> None:
    short = dataclasses.replace(CONFIG, steps=2)
    first = train(short, workspace(tmp_path / "a"))
    second = train(dataclasses.replace(short, seed=2), workspace(tmp_path / "b"))
    assert first.weights.read_bytes() != second.weights.read_bytes()


def test_learning_rate_warms_up_then_falls_to_two_percent() -> None:
    rates = [learning_rate(step, peak=1.0, warmup=10, steps=100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.02)
