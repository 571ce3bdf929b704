"""Layouts of others: the same model comes out as theirs computes, whatever form its tower is stored in."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pipelines.config import load_config
from pipelines.errors import CheckpointError, ConfigError
from pipelines.project import Project, find_project
from pipelines.workspace import Event, Log, Workspace
from stages.artifacts import Checkpoint
from stages.data.image import preprocess
from stages.load import load
from stages.models.description import check_config
from stages.models.layouts.new import new_checkpoint
from stages.models.layouts.new_weights import write_random
from stages.models.qwen2 import CachedContext, MaskedContext
from stages.models.vlm import ModelConfig as Configuration
from stages.schema import ModelConfig
from tests.fastvithd import Apple, Oracle, Timm

PROJECT = find_project(Path(__file__).parents[2])
KEYS = Path(__file__).parent / "keys"
ORACLES = {"apple": Apple, "transformers": Timm}
PROJECTORS = {
    "apple": ("model.mm_projector.0", "model.mm_projector.2"),
    "transformers": ("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"),
}


def shape_of(name: str) -> dict[str, Any]:
    return dict(load_config(PROJECT, [f"model={name}"]).groups["model"]["shape"])


@pytest.fixture(scope="module")
def tiny() -> Configuration:
    """fastvlm-tiny with images of 128 pixels: 4 tokens."""
    config = check_config(shape_of("fastvlm-tiny"), Path("fastvlm-tiny"))
    assert config.vision is not None
    return replace(config, vision=replace(config.vision, image_size=128))


def loaded(folder: Path, work: Path, events: list[Event] | None = None, **others: Any) -> Checkpoint:
    keys = {"revision": None, "shape": None, "module": None, "inputs": None, "outputs": None, **others}
    (work / "out").mkdir(parents=True)
    send = events.append if events is not None else lambda event: None
    return load(ModelConfig(str(folder), **keys), Workspace(work / "out", work / "scratch", send))


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
    return state


@pytest.mark.parametrize("layout", ["apple", "transformers"])
@pytest.mark.parametrize("form", ["deployed", "trained", "mixed"])
def test_image_features_are_those_of_the_original(layout: str, form: str, tiny: Configuration, tmp_path: Path) -> None:
    write_random(tmp_path / "model", tiny, layout, seed=5, trained=form != "deployed")
    if form == "mixed":
        write_random(tmp_path / "other", tiny, layout, seed=6)
        state, other = load_file(tmp_path / "model" / "model.safetensors"), state_of(tmp_path / "other")
        for part in ("conv_exp", "final_conv", "network.4.", "stages.2.blocks", "network.6", "stages.3.pos_emb"):
            for name in [name for name in state if f"model.{part}" in name]:
                del state[name]
            state |= {name: tensor for name, tensor in other.items() if f"model.{part}" in name}
        save_file(state, tmp_path / "model" / "model.safetensors")
    checkpoint = loaded(tmp_path / "model", tmp_path / "work")
    state = state_of(tmp_path / "model")
    image = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(1))
    expected = Oracle(state, ORACLES[layout]).features(image)
    first, second = ((state[f"{name}.weight"].double(), state[f"{name}.bias"].double()) for name in PROJECTORS[layout])
    projected = F.linear(F.gelu(F.linear(expected, *first)), *second)
    model = checkpoint.model()
    with torch.no_grad():
        found, features = model.vision(image), model.encode(image)
    assert 0.5 < expected.abs().max() < 200 and features.std() > 0.01
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (features - projected).abs().max() <= 2e-5 * projected.abs().max()


def test_both_layouts_give_the_same_decoder_bits(tiny: Configuration, tmp_path: Path) -> None:
    """And a tower in bfloat16 that is deployed comes through exactly."""
    for layout, body in (("apple", "model."), ("transformers", "model.language_model."), ("qwen2", "model.")):
        write_random(tmp_path / layout, tiny, layout, shards=2)
        state = state_of(tmp_path / layout)
        with loaded(tmp_path / layout, tmp_path / f"{layout}-work").tensors() as tensors:
            for name in ("embed_tokens.weight", "layers.3.mlp.down_proj.weight", "layers.0.self_attn.q_proj.bias"):
                assert tensors[f"text.{name}"].dtype == torch.bfloat16
                assert torch.equal(tensors[f"text.{name}"], state[f"{body}{name}"])
            if layout == "apple":
                stem = state["model.vision_tower.vision_tower.model.patch_embed.0.reparam_conv.weight"]
                assert torch.equal(tensors["vision.patch_embed.0.weight"], stem.float())


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(tied: bool, tmp_path: Path, tiny: Configuration) -> None:
    """Whole and step by step, from the same folder."""
    from transformers import Qwen2ForCausalLM

    assert tiny.text is not None
    write_random(
        tmp_path / "model",
        Configuration(None, replace(tiny.text, tie_word_embeddings=tied)),
        "qwen2",
        dtype="float32",
    )
    theirs = Qwen2ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(0, tiny.text.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    ours = loaded(tmp_path / "model", tmp_path / "work").model()
    config = ours.text.config
    with torch.no_grad():
        expected = theirs(ids).logits
        context = MaskedContext(torch.arange(40), torch.ones(40, 40, dtype=torch.bool).tril(), config)
        whole = ours.text(ours.text.embed_tokens(ids), context)
        caches = [torch.zeros(1, config.num_key_value_heads, 48, config.head_dim) for _ in range(8)]
        steps = []
        for start, end in [(0, 7), *((position, position + 1) for position in range(7, 40))]:
            cached = CachedContext(torch.tensor([start]), caches, config)
            steps.append(ours.text(ours.text.embed_tokens(ids[:, start:end]), cached))
            caches = cached.caches
    assert expected.std() > 0.1
    assert (whole - expected).abs().max() <= 1e-4
    assert (torch.cat(steps, dim=1) - expected).abs().max() <= 1e-4


def test_the_published_names_and_shapes_are_reproduced() -> None:
    from stages.models.layouts.new_weights import _plan

    config = check_config(shape_of("fastvlm-0.5b"), Path("fastvlm-0.5b"))
    for layout, file in (("apple", "fastvlm_tower_keys_apple"), ("transformers", "fastvlm_0.5b_keys_transformers")):
        found = {each.name: list(each.shape) for each in _plan(config, layout, "bfloat16", False)}
        lines = gzip.decompress((KEYS / f"{file}.txt.gz").read_bytes()).decode().splitlines()
        listed = {name: json.loads(shape) for name, _, shape in (line.partition(" ") for line in lines)}
        assert [name for name in listed if found.get(name) != listed[name]] == []
        tower = "model.vision_tower."
        assert {n for n in found if n.startswith(tower)} == {n for n in listed if n.startswith(tower)}
        assert sum(".layers." in name for name in found) == 24 * 12
