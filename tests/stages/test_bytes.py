"""Bytes told from a shape alone, against what the stages write of such a model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.workspace import Workspace
from stages.artifacts import QuantizedModel
from stages.convert import convert
from stages.devices.bytes import artifact_bytes, stored_bytes
from stages.models.vlm import ModelConfig
from stages.quantizers.model import quantize_weights
from tests.conf import CONF, group
from tests.toy import toy_checkpoint, toy_config

REFERENCE = CONF.parent / "artifacts/reference"
CONTEXT, TOLERANCE = 256, 0.03


def shapes() -> dict[str, ModelConfig]:
    """The reference model, its decoder halved, and all of it cut down."""
    whole = ModelConfig.from_dict(json.loads((REFERENCE / "config.json").read_text()))
    assert whole.text and whole.vision
    text = replace(whole.text, num_hidden_layers=2, intermediate_size=192)
    least = replace(whole.text, num_hidden_layers=1, intermediate_size=128, num_attention_heads=2, head_rank=32)
    tower = replace(whole.vision, depths=(1, 1, 1), widths=(32, 64, 64), image_size=64)
    return {
        "reference": whole,
        "half": replace(whole, text=text),
        "small": replace(whole, text=least, vision=tower),
    }


def quantized(config: ModelConfig, path: Path, settings: Any) -> QuantizedModel:
    """Random weights of that shape, with the reference model's tokenizer."""
    checkpoint = toy_checkpoint(path / "checkpoint", config=config)
    for name in ("tokenizer.json", "preprocessing.json"):
        shutil.copyfile(REFERENCE / name, checkpoint.path / name)
    out = path / "quantized"
    out.mkdir()
    quantize_weights(checkpoint, None, None, settings, Workspace(out, path / "scratch"))
    checkpoint.copy_description(out)
    return QuantizedModel(out)


FORMATS: dict[str, dict[str, Any]] = {
    "int4": {"method": "rtn"},
    "int8": {},
    "none": {},
    "palette4": {"method": "kmeans", "importance": "uniform"},
    "hqq": {"symmetric": False, "group_size": 16},
}
FORMATS["vectors"] = {**FORMATS["palette4"], "vector": 2, "group_size": 16}
FILES = {"vectors": "palette4"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rank", [None, 24])
def test_stored_bytes_are_those_of_the_store(name: str, rank: int | None, tmp_path: Path) -> None:
    config = toy_config()
    assert config.text
    config = replace(config, text=replace(config.text, head_rank=rank))
    settings = group("quantize", FILES.get(name, name), **FORMATS[name])
    store = quantized(config, tmp_path, settings).store()
    assert stored_bytes(config, settings) == {name: store.format(name).bytes for name in store.names()}


@pytest.mark.parametrize("budget", [{"bits": 4.0}, {"bytes": 100_000}, {"bits": 12.0, "bytes": 100_000}])
@pytest.mark.parametrize("file", ["auto", "qat2"])
def test_a_budget_is_spent(file: str, budget: dict[str, float]) -> None:
    settings = group("quantize", file, budget={"bits": None, "bytes": None, "kl": None, **budget})
    found = stored_bytes(toy_config(), settings)
    floats = stored_bytes(toy_config(), group("quantize", "none"))
    allowed = 100_000 if "bytes" in budget else budget["bits"] * sum(floats.values()) / 2 / 8
    assert allowed - len(found) <= sum(found.values()) <= allowed
    assert all(found[name] <= size for name, size in floats.items())


def test_a_large_budget_is_not_spent() -> None:
    settings = group("quantize", "auto", budget={"bits": None, "bytes": 10**9, "kl": None})
    assert stored_bytes(toy_config(), settings) == stored_bytes(toy_config(), group("quantize", "none"))


def test_a_divergence_alone_says_nothing_of_bytes() -> None:
    settings = group("quantize", "auto", budget={"bits": None, "bytes": None, "kl": 0.1})
    assert stored_bytes(toy_config(), settings) == stored_bytes(toy_config(), group("quantize", "int4"))


@pytest.mark.parametrize("device", ["pixel-8", "iphone-15-pro"])
@pytest.mark.parametrize("name", shapes())
def test_artifacts_take_about_what_is_told(name: str, device: str, tmp_path: Path) -> None:
    config, settings, profile = shapes()[name], group("quantize", "int4", method="rtn"), group("device", device)
    model, out = quantized(config, tmp_path, settings), tmp_path / "device"
    out.mkdir()
    made = convert(model, group("convert", "default", context=CONTEXT), profile, Workspace(out, tmp_path / "scratch"))
    size = sum(path.stat().st_size for path in made.path.rglob("*") if path.is_file())
    tokenizer = (REFERENCE / "tokenizer.json").stat().st_size
    for known in (tokenizer, None):
        told = artifact_bytes(config, settings, profile, context=CONTEXT, tokenizer_bytes=known)
        assert told == pytest.approx(size, rel=TOLERANCE)


def test_more_context_takes_more_in_core_ml_alone() -> None:
    settings = group("quantize", "int4")
    for device, grows in (("pixel-8", False), ("iphone-15-pro", True)):
        few, many = (
            artifact_bytes(toy_config(), settings, group("device", device), context=context) for context in (64, 128)
        )
        assert (many > few) == grows
