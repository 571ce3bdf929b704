"""A model, its training, and a student's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class ModelConfig:
    """path: the checkpoint's folder, relative to the project or absolute; hf://OWNER/NAME, of the hub, at `revision`, a
    commit; an MLflow URI (models:/NAME/VERSION, runs:/ID/PATH); or a path that DVC tracks.

    shape: what the checkpoint must be, as its config.json says in Tapeout's own layout; null takes any. module: a torch
    module of your own, {_target_: package.module.Class, ARGUMENT: VALUE}, with inputs, {NAME: {shape: [...], dtype:
    float32}}, and outputs, their names; null where config.json says which model it is.
    """

    path: str
    revision: str | None
    shape: dict[str, Any] | None
    module: dict[str, Any] | None
    inputs: dict[str, Any] | None
    outputs: list[str] | None


@dataclass
class TrainConfig:
    """The reference model's training. learning_rate is the peak; warmup, log_every and checkpoint_every are in steps;
    threads: of torch, where there is no CUDA device."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    warmup: int
    seed: int
    threads: int
    log_every: int
    checkpoint_every: int


@dataclass
class DistillConfig:
    """Steps of `batch` images with four questions each, drawn by `seed`. learning_rate is the peak, after `warmup`
    steps; of quantization-aware training it is in units of a weight matrix's root mean square.

    temperature of teacher and student; hard_share: share of the true answers in the loss, the rest being the teacher's;
    features, hidden: weights of the squared error of the visual tokens, and of each decoder layer's output at the text
    tokens, in units of the teacher's variance; 0 leaves them out.
    grid_rate: what scales and palettes learn at, as a share of learning_rate; float_rate: what stays float does
    (both of quantization-aware training only). threads: of torch, where there is no CUDA device. checkpoint_every:
    steps between saved states.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    temperature: float
    hard_share: float
    features: float
    hidden: float
    grid_rate: float
    float_rate: float
    seed: int
    threads: int
    log_every: int
    checkpoint_every: int
