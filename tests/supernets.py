"""Supernets of toy models, which are asked the reference model's questions, and what searches them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.artifacts import Checkpoint
from stages.distillation.source import ProceduralQuestions
from stages.elastic.space import Architecture
from stages.models.vlm import ModelConfig
from stages.schema import DeviceProfile, SearchConfig, ShortlistConfig
from stages.schema.search import SpaceConfig, SupernetConfig
from stages.search_artifacts import Supernet
from stages.searching.trials import Cost, Score, Trial
from stages.supernet import supernet
from tests.conf import group
from tests.reader import reader, shape, workspace

SPACE: dict[str, Any] = {
    "decoder_depth": [1, 0.5],
    "decoder_ffn": [1, 0.67, 0.34],
    "kv_heads": [1, 0.5],
    "group_heads": [1, 0.5],
    "head_rank": [1, 0.5],
    "tower_depth": [1, 0.5],
    "tower_width": [1, 0.75, 0.5],
    "tower_ffn": [1, 0.67],
    "resolution": [1, 0.75, 0.5],
    "visual_tokens": [1, 0.5],
    "multiple": 16,
}


def space_config(**changes: Any) -> SpaceConfig:
    return SpaceConfig(**{**SPACE, **changes})


def rich(**text: Any) -> ModelConfig:
    """Three stages, one of convolutions and two that attend; a feed-forward of a fractional ratio; seven query heads to
    each of two keys, of less than the decoder's width together."""
    size = shape(num_attention_heads=14, num_key_value_heads=2, head_dim=4, num_hidden_layers=3, **text)
    assert size.vision is not None
    vision = replace(
        size.vision,
        depths=(2, 1, 2),
        widths=(32, 32, 64),
        mixers=("repmixer", "attention", "attention"),
        strides=((1, 1), (1, 2), (2, 1)),
        mlp_ratio=1.5,
        head_dim=8,
        expansion=2,
    )
    return replace(size, vision=vision)


def supernet_config(space: SpaceConfig | None = None, **changes: Any) -> SupernetConfig:
    small = {"steps": 0, "batch": 2, "random": 1, "importance_batches": 1, "warmup": 1, "threads": 1}
    config: SupernetConfig = group("supernet", "default", **{**small, **changes})
    return replace(config, space=space or space_config())


def made(
    path: Path, size: ModelConfig | None = None, config: SupernetConfig | None = None
) -> tuple[Checkpoint, Supernet]:
    """A checkpoint of random weights, and its supernet."""
    checkpoint, config = reader(path / "checkpoint", size=size), config or supernet_config()
    return checkpoint, supernet(checkpoint, config, workspace(path / "supernet"), questions(checkpoint, config.batch))


def questions(checkpoint: Checkpoint, batch: int = 2, seed: int = 5) -> ProceduralQuestions:
    return ProceduralQuestions(checkpoint, seed=seed, batch=batch, workers=0)


def devices(*names: str) -> dict[str, DeviceProfile]:
    return {name: group("device", name) for name in names or ("pixel-8", "iphone-15-pro")}


def search_config(**changes: Any) -> SearchConfig:
    """Few trials, of the least questions that there are."""
    small = {"trials": 5, "population": 3, "seeds": [1, 2], "images": 16, "context": 96, "beat_random": None}
    quantize = group("quantize", "int4", method="rtn", embeddings=4)
    config: SearchConfig = group("search", "nsga2", **{**small, **changes, "quantize": quantize})
    return config


def shortlist_config(
    candidates: int = 1, bytes_: float | None = None, latency: float | None = None, refine: int = 0, **search: Any
) -> ShortlistConfig:
    return ShortlistConfig(candidates, bytes_, latency, refine, search_config(**search))


def score(accuracy: float, whole: bool = True, loss: float = 1.0) -> Score:
    return Score(accuracy, loss, 64 if whole else 16, whole)


def trial(
    accuracy: float,
    bytes_: float,
    latency: float,
    architecture: Architecture | None = None,
    whole: bool = True,
    loss: float = 1.0,
) -> Trial:
    """Costs in shares."""
    cost = Cost(1, {}, {}, bytes_, latency)
    return Trial("nsga2", 1, 0, architecture or {"depth": 1}, score(accuracy, whole, loss), cost)
