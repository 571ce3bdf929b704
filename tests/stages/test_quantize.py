"""calibrate and quantize on the toy model: what they measure, what they write, the same each time."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import ConfigError, StageError, TapeoutError
from pipelines.workspace import Workspace
from stages.artifacts import Calibration, Checkpoint, QuantizedModel
from stages.calibrate import calibrate
from stages.quantize import quantize
from stages.quantizers.examples import batch_of, forward
from stages.schema import LayerOverride, Method, QuantizeConfig
from tests.conf import CONF, group
from tests.toy import toy_checkpoint

SMALL = group("calibrate", "default", samples=6, seed=3, batch=4)


def workspace(path: Path) -> Workspace:
    for name in ("out", "scratch"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return Workspace(path / "out", path / "scratch")


def configured(name: str, **changes: Any) -> QuantizeConfig:
    return dataclasses.replace(group("quantize", name), **changes)


@dataclasses.dataclass
class Drawn:
    image: np.ndarray
    question: str
    answer: str


def drawn(count: int) -> list[Drawn]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 40, 30, 3)).astype(np.uint8)
    return [Drawn(image, "what" + "?" * index, "yes"[: 1 + index % 3]) for index, image in enumerate(images)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    return calibrate(checkpoint, SMALL, workspace(tmp_path_factory.mktemp("calibration")))


@pytest.mark.parametrize(
    ("name", "least", "most"), [("none", 16, 16), ("int8", 8, 10.5), ("int4", 4.5, 7.5), ("palette4", 4.0, 7.5)]
)
def test_shipped_configurations(
    name: str, least: float, most: float, checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path
) -> None:
    model = quantize(checkpoint, configured(name), workspace(tmp_path), calibration)
    store, weights = model.store(), load_file(checkpoint.weights)
    assert set(store.names()) == weights.keys()
    assert sorted(path.name for path in model.path.iterdir()) == [
        "config.json",
        "formats.json",
        "method.json",
        "preprocessing.json",
        "tokenizer.json",
        "weights.safetensors",
    ]
    totals = model.read_json("formats.json")["totals"]
    assert least <= totals["bits_per_parameter"] <= most
    for tensor in store.names():
        dense, original = store.dense(tensor), weights[tensor].float().numpy()
        assert dense.shape == original.shape
        if store.format(tensor).format == "float":
            assert (dense == original).all()
        else:
            assert np.linalg.norm(dense - original) < 0.15 * np.linalg.norm(original)
    assert model.model().text.norm.weight.dtype == torch.float32


def test_what_is_not_as_configured_says_why(checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path) -> None:
    config = configured("int4", group_size=64)
    store = quantize(checkpoint, config, workspace(tmp_path), calibration).store()
    form = store.format("text.layers.0.mlp.down_proj.weight")
    assert (form.bits, form.group_size) == (4, 32)
    assert form.reason == "groups of 64 do not divide 96 columns"
    assert store.format("text.layers.0.mlp.up_proj.weight").reason == ""
    assert store.format("vision.patch_embed.0.weight").reason == "a 3x3 convolution in 1 groups, not a matrix"
    assert store.format("text.norm.weight").reason == ""


def test_overrides(checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path) -> None:
    overrides = [
        LayerOverride("text.layers.0.*", bits=8, group_size=0, symmetric=True),
        LayerOverride("text.layers.0.mlp.*", bits=0),
        LayerOverride("projector.*", method=Method.rtn, bits=3),
    ]
    config = configured("int4", overrides=overrides, embeddings=4)
    store = quantize(checkpoint, config, workspace(tmp_path), calibration).store()
    attention = store.format("text.layers.0.self_attn.q_proj.weight")
    assert (attention.bits, attention.group_size, attention.symmetric) == (8, 64, True)
    assert store.format("text.layers.0.mlp.up_proj.weight").format == "float"
    assert store.format("text.layers.1.mlp.up_proj.weight").bits == 4
    assert store.format("projector.0.weight").bits == 3
    assert (store.format("text.embed_tokens.weight").bits, store.format("text.embed_tokens.weight").group_size) == (
        4,
        32,
    )


WRONG = [
    ({"bits": 5}, ConfigError, ["5 bits of affine", "Expected one of 2, 3, 4, 6, 8"]),
    (
        {"method": Method.kmeans},
        ConfigError,
        ["kmeans does not make format affine", "set quantize.method to one of: rtn, gptq"],
    ),
    ({"group_size": -1}, ConfigError, ["group_size is -1"]),
    ({"damping": 0.0}, ConfigError, ["quantize.damping is 0.0"]),
    (
        {"overrides": [LayerOverride("text.layer.0.mlp.up_proj.weight", bits=8)]},
        StageError,
        ["no quantizable weight fits", "did you mean 'text.layers.0.mlp.up_proj.weight'?"],
    ),
    ({"overrides": [LayerOverride("text.*", bits=7)]}, ConfigError, ["(text.*)", "7 bits of affine"]),
]


@pytest.mark.parametrize(("changes", "kind", "parts"), WRONG)
def test_impossible_configurations(
    changes: dict[str, Any],
    kind: type[TapeoutError],
    parts: list[str],
    checkpoint: Checkpoint,
    calibration: Calibration,
    tmp_path: Path,
) -> None:
    with pytest.raises(kind) as caught:
        quantize(checkpoint, configured("int4", **changes), workspace(tmp_path), calibration)
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_gptq_comes_closer_than_rounding(checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path) -> None:
    batch = batch_of(checkpoint, drawn(8))
    with torch.no_grad():
        exact = forward(checkpoint.model(), batch)
        errors = {}
        for method in (Method.rtn, Method.gptq):
            config = configured("int4", method=method, scale_search=False)
            model = quantize(checkpoint, config, workspace(tmp_path / method.value), calibration).model()
            errors[method] = float((forward(model, batch) - exact)[batch.answers].square().mean())
    assert errors[Method.gptq] < errors[Method.rtn]


def test_tied_embeddings_and_float32(tmp_path: Path) -> None:
    checkpoint = toy_checkpoint(tmp_path / "tied", tied=True)
    state = {name: tensor.float() for name, tensor in load_file(checkpoint.weights).items()}
    state["text.norm.weight"][0] = 1e5
    save_file(state, checkpoint.weights)
    calibration = calibrate(checkpoint, dataclasses.replace(SMALL, samples=2), workspace(tmp_path / "calibration"))
    model = quantize(checkpoint, configured("int4"), workspace(tmp_path / "model"), calibration)
    form = model.store().format("text.norm.weight")
    assert form.dtype == "float32" and "65,504" in form.reason
    assert "text.lm_head.weight" not in model.store().names()
    assert forward(model.model(), batch_of(checkpoint, drawn(1))).isfinite().all()


RUN = """
import sys
from pathlib import Path
from tests.stages.test_quantize import SMALL, calibrate, configured, quantize, workspace
from stages.artifacts import Checkpoint
checkpoint, out = Checkpoint(Path(sys.argv[1])), Path(sys.argv[2])
calibration = calibrate(checkpoint, SMALL, workspace(out / "calibration"))
quantize(checkpoint, configured("int4"), workspace(out / "int4"), calibration)
"""


def test_the_same_bytes_with_other_threads_and_hash_seed(
    checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "HOME": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-c", RUN, str(checkpoint.path), str(tmp_path)], check=True, env=environment, cwd=CONF.parent
    )
    model = quantize(checkpoint, configured("int4"), workspace(tmp_path / "here"), calibration)
    for ours, theirs in ((calibration.path, tmp_path / "calibration/out"), (model.path, tmp_path / "int4/out")):
        for file in ours.iterdir():
            assert file.read_bytes() == (theirs / file.name).read_bytes(), file


def test_formats_json_is_readable(checkpoint: Checkpoint, calibration: Calibration, tmp_path: Path) -> None:
    model: QuantizedModel = quantize(checkpoint, configured("int4"), workspace(tmp_path), calibration)
    formats = json.loads((model.path / "formats.json").read_text())
    assert formats["tensors"]["projector.0.weight"] == {
        "bits": 4,
        "bytes": 64 * 64 // 2 + 64 * 2 * 2 + 64 * 2 // 2,
        "format": "affine",
        "group_size": 32,
        "shape": [64, 64],
        "symmetric": False,
    }
