"""A model as a search leaves it, whose heads are fewer than its width asks for, its output head two matrices, its tower
thin: an ordinary checkpoint to every stage, and on both runtimes what torch computes."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.errors import LoweringError
from stages.artifacts import Checkpoint, DeviceModel, QuantizedModel
from stages.calibrate import calibrate
from stages.convert import convert
from stages.load import load
from stages.models.qwen2 import CachedContext, MaskedContext
from stages.models.vlm import ModelConfig as Configuration
from stages.probe import probe
from stages.quantize import quantize
from stages.quantizers.choices import Role
from stages.quantizers.layers import quantizable_layers
from stages.runtimes.coreml_reference import CoreMLSession
from stages.runtimes.generate import generate, prefill
from stages.runtimes.opening import open_session
from stages.schema import ModelConfig
from tests.conf import group
from tests.tiny import DEVICES, device, validated, workspace
from tests.toy import narrow_config, toy_checkpoint

torch.set_num_threads(1)
CONTEXT, CHUNK = 96, 32
HEAD = ("text.lm_head.down.weight", "text.lm_head.up.weight")
SIZES: dict[str, dict[str, Any]] = {
    "one head": {},
    "more heads than the width": {"num_attention_heads": 3},
    "narrow heads": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16},
    "a head of rank 7": {"head_rank": 7},
    "whole head": {"head_rank": None},
    "tied": {"head_rank": None, "tie_word_embeddings": True},
}


def loaded(path: Path, config: Configuration) -> Checkpoint:
    toy_checkpoint(path / "files", config=config)
    return load(ModelConfig(str(path / "files"), None, None, None, None, None), workspace(path / "load"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint of a size of SIZES; it in int4 by a calibration; and its probe."""

    @cache
    def make(name: str) -> tuple[Checkpoint, QuantizedModel, Any]:
        path = tmp_path_factory.mktemp("narrow")
        checkpoint = loaded(path, narrow_config(**SIZES[name]))
        calibration = calibrate(
            checkpoint, group("calibrate", "default", samples=4, batch=2, tokens=12), workspace(path / "calibrate")
        )
        model = quantize(checkpoint, group("quantize", "int4"), workspace(path / "quantize"), calibration)
        settings = group("probe", "default", tokens=32, images=1)
        return checkpoint, model, probe(model, settings, workspace(path / "probe"))

    return make


def shipped(path: Path, runtime: str, model: QuantizedModel, probed: Any, **profile: Any) -> DeviceModel:
    config = group("convert", "default", context=CONTEXT, prefill_chunk=CHUNK)
    return convert(model, config, dataclasses.replace(device(runtime), **profile), workspace(path / "convert"), probed)


@pytest.mark.parametrize("runtime", DEVICES)
@pytest.mark.parametrize("name", SIZES)
def test_the_runtime_chooses_what_torch_chooses(name: str, runtime: str, made: Any, tmp_path: Path) -> None:
    checkpoint, model, probed = made(name)
    ships = shipped(tmp_path, runtime, model, probed)
    metrics = validated(checkpoint, model, ships, device(runtime), tmp_path, probed)
    assert all(gate["passed"] for gate in metrics["gates"])
    assert metrics["parity"]["error"] <= {"onnxruntime": 2e-6, "coreml": 3e-3}[runtime]
    assert metrics["parity"]["features_error"] <= {"onnxruntime": 1e-6, "coreml": 2e-3}[runtime]
    assert metrics["parity"]["top1"] >= 0.99


@pytest.mark.parametrize("runtime", DEVICES)
@pytest.mark.parametrize("name", ["one head", "more heads than the width"])
def test_chunks_and_single_tokens_write_what_torch_writes(name: str, runtime: str, made: Any, tmp_path: Path) -> None:
    _, model, probed = made(name)
    session = open_session(shipped(tmp_path, runtime, model, probed))
    ids, image = list(range(60, 100)), np.zeros((40, 64), np.float32)
    chunks = prefill(session, session.start(), ids, image)
    state = session.start()
    steps = [session.step(ids[at : at + 1], image[at : at + 1], at, state) for at in range(len(ids))]
    torchs = model.model()
    context = MaskedContext(torch.arange(40), torch.ones(40, 40).tril().bool(), torchs.config.text)
    with torch.no_grad():
        expected = torchs.text(torchs.text.embed_tokens(torch.tensor([ids])), context)[0].numpy()
    close = {"onnxruntime": 2e-5, "coreml": 5e-3}[runtime] * np.abs(expected).max()
    assert np.abs(chunks - expected).max() <= close and np.abs(np.concatenate(steps) - expected).max() <= close
    assert len(generate(session, ids, image[:0], end_id=-1, max_new_tokens=20)) == 20


@pytest.mark.parametrize("width", [96, 100])
def test_core_ml_splits_the_last_matrix_of_the_head(width: int, made: Any, tmp_path: Path) -> None:
    _, model, probed = made("one head")
    logits = []
    for head_width in (0, width):
        session = CoreMLSession(
            shipped(tmp_path / str(head_width), "coreml", model, probed, head_width=head_width), precision="float32"
        )
        logits.append(session.step(list(range(9)), np.zeros((9, 64), np.float32), 0, session.start()))
    assert np.array_equal(*logits)


def test_onnx_runtime_computes_scores_of_the_last_tokens_alone(made: Any, tmp_path: Path) -> None:
    _, model, probed = made("one head")
    session = open_session(shipped(tmp_path, "onnxruntime", model, probed))
    ids, rows = list(range(30)), np.zeros((30, 64), np.float32)
    whole = session.step(ids, rows, 0, session.start())
    last = session.step(ids, rows, 0, session.start(), keep=2)  # type: ignore[call-arg]
    assert last.shape == (2, 288) and np.allclose(last, whole[-2:], atol=1e-6)


def test_heads_that_onnx_runtime_does_not_take(tmp_path: Path) -> None:
    """GroupQueryAttention says it when it runs first; we when we convert."""
    model = quantize(
        loaded(tmp_path, narrow_config(head_dim=24)),
        group("quantize", "int4", method="rtn", embeddings=4),
        workspace(tmp_path / "quantize"),
    )
    with pytest.raises(LoweringError, match=r"a width of 24; ONNX Runtime needs a multiple of 16\n.*text\.head_dim"):
        shipped(tmp_path, "onnxruntime", model, None)


def test_both_matrices_of_the_head_are_the_head() -> None:
    with torch.device("meta"):
        model: Any = narrow_config().build()
    layers = quantizable_layers(model)
    assert {name for name, layer in layers.items() if layer.role is Role.head} == {*HEAD}
    assert [layers[name].shape for name in HEAD] == [(48, 64), (288, 48)]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layer = "text.layers.0.self_attn"
    assert shapes[f"{layer}.q_proj.weight"] == (32, 64) and shapes[f"{layer}.q_proj.bias"] == (32,)
    assert shapes[f"{layer}.o_proj.weight"] == (64, 32)
    assert shapes["vision.stages.0.blocks.0.ffn.expand.weight"] == (48, 32, 1, 1)


def test_the_head_keeps_bits_of_its_own(tmp_path: Path) -> None:
    settings = group("quantize", "int4", method="rtn", embeddings=4, head=8)
    model = quantize(loaded(tmp_path, narrow_config()), settings, workspace(tmp_path / "quantize"))
    assert [model.store().format(name).bits for name in HEAD] == [8, 8]
    assert model.store().format("text.layers.0.mlp.up_proj.weight").bits == 4


def test_the_cache_and_the_whole_agree() -> None:
    config = narrow_config(num_attention_heads=3)
    text = config.text
    assert text is not None
    model: Any = config.build().eval()
    embeddings = torch.randn(1, 20, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model.text(embeddings, MaskedContext(torch.arange(20), torch.ones(20, 20).tril().bool(), text))
        cached = CachedContext(torch.tensor([0]), [torch.zeros(1, 1, 24, 32) for _ in range(4)], text)
        first = model.text(embeddings[:, :12], cached)
        second = model.text(embeddings[:, 12:], CachedContext(torch.tensor([12]), cached.caches, text))
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-5)
