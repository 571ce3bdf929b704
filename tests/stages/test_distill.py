"""Distillation: what a student learns, what it keeps, and that a kill changes nothing."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import CheckpointError, ConfigError, StageError
from stages.artifacts import Checkpoint
from stages.checks import distillation
from stages.distill import distill
from stages.distillation.source import ProceduralQuestions
from tests.reader import config, divergence, reader, shape, workspace
from tests.toy import toy_checkpoint

FILES = {"model.safetensors", "config.json", "tokenizer.json", "preprocessing.json"}


def questions(student: Checkpoint) -> ProceduralQuestions:
    return ProceduralQuestions(student, seed=1, batch=2, workers=0)


def changed(checkpoint: Checkpoint, path: Path, noise: float = 0.0, pruned: float = 0.0) -> Checkpoint:
    """A copy with noise on its matrices, or with a share of them zero."""
    shutil.copytree(checkpoint.path, path)
    generator = torch.Generator().manual_seed(3)
    state = load_file(path / "model.safetensors")
    for name, value in state.items():
        if value.ndim > 1:
            kept = torch.rand(value.shape, generator=generator) >= pruned
            value = value.float() * kept
            value += noise * value.std() * torch.randn(value.shape, generator=generator) * kept
            state[name] = value.half()
    save_file(state, path / "model.safetensors")
    return Checkpoint(path)


def test_a_damaged_student_recovers(tmp_path: Path) -> None:
    teacher = reader(tmp_path / "teacher")
    student = changed(teacher, tmp_path / "student", noise=0.3)
    made = distill(teacher, student, config(), workspace(tmp_path), questions(student))
    assert {path.name for path in made.path.iterdir()} == FILES
    assert {str(value.dtype) for value in load_file(made.weights).values()} == {"torch.float16"}
    assert divergence(teacher, made.model()) < 0.9 * divergence(teacher, student.model())


def test_zeros_of_a_pruned_student_stay(tmp_path: Path) -> None:
    teacher = reader(tmp_path / "teacher")
    student = changed(teacher, tmp_path / "student", pruned=0.5)
    made = distill(teacher, student, config(steps=4, weight_decay=0.1), workspace(tmp_path), questions(student))
    before, after = load_file(student.weights), load_file(made.weights)
    for name, value in before.items():
        if value.ndim > 1:
            assert not after[name][value == 0].any()
            assert not torch.equal(after[name], value)


@pytest.mark.parametrize("text", [{"hidden_size": 32}, {"head_rank": 24}])
def test_a_smaller_student_of_a_lower_resolution_learns(text: dict[str, int], tmp_path: Path) -> None:
    """One layer instead of two, a coarser grid of visual tokens, half the width; or a head and rank less."""
    teacher = reader(tmp_path / "teacher")
    size = shape(num_hidden_layers=1, intermediate_size=48, num_attention_heads=1, **text)
    vision = dataclasses.replace(size.vision, image_size=16, widths=(16, 32))
    student = reader(tmp_path / "student", seed=1, size=dataclasses.replace(size, vision=vision))
    student.write_json("preprocessing.json", {**student.preprocessing(), "image_size": 16})
    made = distill(teacher, student, config(hard_share=0.2), workspace(tmp_path), questions(student))
    assert made.config() == student.config()
    source = questions(student)
    (batch,) = source.batches(50, 51)
    with torch.no_grad():
        labels = source.targets(batch).labels
        losses = [
            torch.nn.functional.cross_entropy(source.outputs(model.model(), batch).logits, labels)
            for model in (student, made)
        ]
    assert losses[1] < losses[0]


def run(folder: Path) -> None:
    """What a process of its own does, and is killed at."""
    teacher, student = Checkpoint(folder / "teacher"), Checkpoint(folder / "student")
    distill(teacher, student, config(checkpoint_every=2), workspace(folder), questions(student))


def test_a_run_killed_outright_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        teacher = reader(tmp_path / name / "teacher")
        changed(teacher, tmp_path / name / "student", noise=0.3)
    run(tmp_path / "whole")
    state = tmp_path / "killed/scratch/distill.pt"
    command = [
        sys.executable,
        "-c",
        f"from tests.stages.test_distill import *; run(Path({str(tmp_path / 'killed')!r}))",
    ]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < torch.load(state, weights_only=True)["step"] < config().steps
    run(tmp_path / "killed")
    for name in FILES:
        assert (tmp_path / "whole/out" / name).read_bytes() == (tmp_path / "killed/out" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": True}, "other vocabularies"),
        ({"vocab_size": 1024}, "the student's 1024"),
        ({"prompt_template": "{image}USER {question}<|im_start|>"}, "prompt_template"),
        ({"end_token": "<|im_start|>"}, "end_token"),
    ],
)
def test_two_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    teacher, student = reader(tmp_path / "teacher"), reader(tmp_path / "student")
    if "tokenizer" in change:
        shutil.copyfile(toy_checkpoint(tmp_path / "toy").path / "tokenizer.json", student.path / "tokenizer.json")
    elif "vocab_size" in change:
        described = json.loads((student.path / "config.json").read_text())
        student.write_json("config.json", {**described, "text": {**described["text"], **change}})
    else:
        student.write_json("preprocessing.json", {**student.preprocessing(), **change})
    with pytest.raises(CheckpointError, match=message) as error:
        distill(teacher, student, config(), workspace(tmp_path))
    assert error.value.hint


def test_prompts_that_the_questions_are_not_packed_for_are_refused(tmp_path: Path) -> None:
    checkpoint = toy_checkpoint(tmp_path / "bytes")
    with pytest.raises(StageError, match="16 tokens"):
        distill(checkpoint, checkpoint, config(), workspace(tmp_path))
    checkpoint.write_json("preprocessing.json", {**checkpoint.preprocessing(), "prompt_template": "{question}{image}"})
    with pytest.raises(StageError, match="prompt_template"):
        distill(checkpoint, checkpoint, config(), workspace(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch": 0},
        {"checkpoint_every": 0},
        {"learning_rate": 0.0},
        {"temperature": 0.0},
        {"hard_share": 1.5},
        {"features": -1.0},
        {"grid_rate": float("nan")},
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused_at_plan_time(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"distill.{next(iter(change))}"):
        distillation(config(**change))
    distillation(config())
