"""A vision-language model small enough to be distilled in a second, that is asked the reference model's questions."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.project import find_project
from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.distillation.objective import Objective
from stages.distillation.source import ProceduralQuestions
from stages.models.vlm import ModelConfig, VisionLanguageModel
from stages.schema import DistillConfig
from tests.toy import toy_checkpoint, toy_config

REFERENCE = Checkpoint(find_project(Path(__file__).parent).root / "artifacts/reference")


def shape(**text: int) -> ModelConfig:
    toy, reference = toy_config(), REFERENCE.config()
    return replace(
        toy,
        text=replace(toy.text, vocab_size=reference.text.vocab_size, **text),
        image_token_id=reference.image_token_id,
    )


def reader(path: Path, seed: int = 0, size: ModelConfig | None = None) -> Checkpoint:
    """Random weights, with the reference model's tokenizer."""
    checkpoint = toy_checkpoint(path, seed=seed, config=size or shape())
    shutil.copyfile(REFERENCE.path / "tokenizer.json", path / "tokenizer.json")
    return checkpoint


def config(**changes: Any) -> DistillConfig:
    usual = DistillConfig(
        steps=12,
        batch=2,
        learning_rate=1e-3,
        warmup=3,
        weight_decay=0.0,
        temperature=1.0,
        hard_share=0.0,
        features=1.0,
        hidden=1.0,
        grid_rate=0.5,
        float_rate=0.05,
        seed=1,
        threads=1,
        log_every=4,
        checkpoint_every=4,
    )
    return replace(usual, **changes)


def workspace(path: Path) -> Workspace:
    for name in ("out", "scratch"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return Workspace(path / "out", path / "scratch")


@torch.no_grad()
def divergence(teacher: Checkpoint, student: VisionLanguageModel) -> float:
    """The loss on questions that no training here asks."""
    source = ProceduralQuestions(teacher, seed=99, batch=8, workers=0)
    (batch,) = source.batches(0, 1)
    model = teacher.model()
    objective = Objective(model, student, temperature=1.0, hard_share=0.0, features=1.0, hidden=0.0)
    return float(objective(source.outputs(model, batch), source.outputs(student, batch), source.targets(batch))[0])
