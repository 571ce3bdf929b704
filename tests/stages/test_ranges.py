"""Values beyond float16's range: a tower whose weights are blown up, under each policy, executed in float16 and held
against torch in float32 with the same weights."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import Interpreter

from pipelines.errors import LoweringError
from stages.artifacts import QuantizedModel
from stages.lowering.coreml import lower_coreml
from stages.lowering.coreml.ranges import FLOAT16_MAX
from stages.models.vlm import Encoder, ModelConfig, ModuleConfig
from stages.quantizers.store import QuantizedStore, StoreWriter
from stages.runtimes.coreml_reference import MLProgram
from tests.rounded import rounded
from tests.toy import toy_checkpoint

SIZES: dict[str, Any] = {"context": 64, "prefill_chunk": 8}
BLOWN = {"vision.stages.0.blocks.0.ffn.contract": 3000.0, "vision.stages.1.blocks.0.ffn.contract": 40000.0}


class Recorder(Interpreter):
    """Runs a captured graph in float32 and notes the largest |value| of each node."""

    def __init__(self, module: torch.fx.GraphModule):
        super().__init__(module)
        self.peaks: dict[str, float] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            self.peaks[node.name] = float(value.abs().max())
        return value


def peaks_of(module: torch.nn.Module, *inputs: torch.Tensor) -> dict[str, float]:
    program = torch.export.export(module.eval(), inputs, strict=False)
    recorder = Recorder(program.module())
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.peaks


@cache
def blown_peaks(model: QuantizedModel) -> dict[str, float]:
    return peaks_of(Encoder(model.model()), pixels())


def pixels() -> torch.Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=["float16", "int4"])
def blown(request, tmp_path_factory) -> QuantizedModel:
    """A toy model some of whose layers reach 1e5 and 1e6; what follows them is a norm, and the projector is small."""
    path = tmp_path_factory.mktemp("blown")
    checkpoint = toy_checkpoint(path / "checkpoint")
    bits = {"float16": 0, "int4": 4}[request.param]
    plain = rounded(checkpoint, path / "plain", bits=bits, embeddings=0, convolutions=bits and 8)
    (path / "blown").mkdir()
    store = plain.store()
    with StoreWriter(path / "blown") as writer:
        for name in store.names():
            form, factor = store.format(name), BLOWN.get(name.rpartition(".")[0], 1.0)
            factor = 1e-4 if name == "projector.0.weight" else factor
            if form.format == "float":
                writer.add_float(name, store.float(name).astype(np.float32) * np.float32(factor))
                continue
            scales = (store.scales(name).astype(np.float32) * factor).astype(np.float16)
            zeros = None if form.symmetric else store.zero_points(name)
            writer.add_affine(name, form.shape, form.bits, store.codes(name), scales, zeros)
    for name in ("config.json", "tokenizer.json", "preprocessing.json"):
        (path / "blown" / name).write_bytes((plain.path / name).read_bytes())
    return QuantizedModel(path / "blown")


def lowered(model: QuantizedModel, path: Path, **options: Any) -> dict[str, Any]:
    return lower_coreml(model.config(), model.store(), path, **SIZES, **options)


def test_the_tower_leaves_float16(blown):
    peaks = blown_peaks(blown)
    assert max(peaks.values()) > 2 * FLOAT16_MAX


def test_fail_names_each_layer_with_its_line_and_its_value(blown, tmp_path):
    peaks = blown_peaks(blown)
    with pytest.raises(LoweringError) as error:
        lowered(blown, tmp_path, ranges={"encoder": peaks}, overflow="fail")
    assert "stages/models/fastvit.py:" in error.value.message and "reaches" in error.value.message
    assert f"{max(peaks.values()):.6g}" in error.value.message
    assert "vision.stages.1.blocks.0.ffn.contract at stages/models/fastvit.py:" in error.value.message
    assert "overflow=float32" in error.value.hint
    assert not list(tmp_path.rglob("*.mlpackage"))


@pytest.mark.parametrize("policy", ["float32", "scale"])
def test_features_are_torchs_where_layers_are_held_otherwise(blown, tmp_path, policy):
    encoder = Encoder(blown.model()).eval()
    with torch.no_grad():
        expected = encoder(pixels()).numpy()
    peaks = blown_peaks(blown)
    description = lowered(blown, tmp_path, ranges={"encoder": peaks}, overflow=policy)
    found = MLProgram(tmp_path / "encoder.mlpackage").predict({"image": pixels().numpy()})["features"]
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()
    held = description["precision"]
    over = {name for name, peak in peaks.items() if peak > FLOAT16_MAX}
    assert {entry["node"] for entry in held} & over
    assert all(entry["line"].startswith("stages/models/") for entry in held)
    assert any("float32" in entry["how"] for entry in held) or policy == "scale"
    assert any(entry["how"].startswith("x 2^-") for entry in held) == (policy == "scale")


def test_what_was_not_seen_to_overflow_stays_float16_and_same_bytes(blown, tmp_path):
    peaks = dict.fromkeys(blown_peaks(blown), 1.0)
    with_ranges = lowered(blown, tmp_path / "a", ranges={"encoder": peaks})
    lowered(blown, tmp_path / "b")
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in "ab"]
    assert not with_ranges["precision"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


class Steps(torch.nn.Module):
    """Large values through what ordinary modules do with them, and back into range."""

    def __init__(self, case: str):
        super().__init__()
        self.case = case
        self.first, self.last = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.norm, self.root = torch.nn.LayerNorm(16), torch.nn.RMSNorm(16)
        self.bias = torch.nn.Parameter(torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = self.first(x)
        if self.case == "norm":
            return self.norm(large) + self.root(large)
        if self.case == "gelu":
            return self.last(torch.nn.functional.gelu(large)) * 1e-5
        if self.case == "sum":
            return (large + self.bias - large.flip(-1) + 3.0) * 1e-5
        if self.case == "product":
            return self.norm(large * 2.0 * x)
        if self.case == "views":
            first, second = large.view(1, 4, 2, 16).transpose(1, 2).unbind(1)
            return torch.cat([first.relu(), -second, x[:, :4]], dim=1).mean(1) * 1e-4
        return large  # an output that does not fit


@pytest.mark.parametrize("policy", ["float32", "scale"])
@pytest.mark.parametrize("case", ["norm", "gelu", "sum", "product", "views", "output"])
def test_operators_take_large_values(case, policy, tmp_path):
    torch.manual_seed(0)
    module = Steps(case).eval()
    with torch.no_grad():
        module.first.weight.mul_(2e5)
        module.first.weight.copy_(module.first.weight.half().float())
    x = torch.randn(1, 8, 16).half().float()
    config = ModuleConfig(f"{__name__}.Steps", {"case": case}, {"x": {"shape": [1, 8, 16], "dtype": "float32"}}, ["y"])
    (tmp_path / "store").mkdir()
    with StoreWriter(tmp_path / "store") as writer:
        for name, tensor in module.state_dict().items():
            writer.add_float(name, tensor.numpy())
    with torch.no_grad():
        expected = module(x).numpy()
    peaks = peaks_of(module, x)
    assert max(peaks.values()) > FLOAT16_MAX
    store, model = QuantizedStore.open(tmp_path / "store"), ModelConfig(None, None, None, config)
    description = lower_coreml(model, store, tmp_path, **SIZES, ranges={"main": peaks}, overflow=policy)
    found = MLProgram(tmp_path / "main.mlpackage").predict({"x": x.numpy()})["y"]
    assert np.abs(found - expected).max() <= 4e-3 * np.abs(expected).max()
    assert description["precision"]
    assert description["functions"]["main"]["outputs"]["y"]["dtype"] == ("float32" if case == "output" else "float16")


def test_a_norm_of_large_values_that_fit_is_computed_without_squaring_them(tmp_path):
    checkpoint = toy_checkpoint(tmp_path / "checkpoint")
    model = rounded(checkpoint, tmp_path / "quantized", bits=8)
    peaks = peaks_of(Encoder(model.model()), pixels())
    near = {name: 60_900.0 if "add" in name or "permute" in name else peak for name, peak in peaks.items()}
    lowered(model, tmp_path / "near", ranges={"encoder": near})
    lowered(model, tmp_path / "plain", ranges={"encoder": peaks})
    kinds = [operators(tmp_path / name / "encoder.mlpackage") for name in ("near", "plain")]
    assert "layer_norm" in kinds[1] and "layer_norm" not in kinds[0]
    found = [
        MLProgram(tmp_path / name / "encoder.mlpackage").predict({"image": pixels().numpy()})
        for name in ("near", "plain")
    ]
    difference = np.abs(found[0]["features"].astype(np.float32) - found[1]["features"])
    assert difference.max() <= 4e-3 * np.abs(found[1]["features"]).max()


def operators(path: Path) -> set[str]:
    function = MLProgram(path).package.model.mlProgram.functions["main"]
    return {operation.type for operation in function.block_specializations[function.opset].operations}


@pytest.mark.parametrize(
    ("ranges", "overflow", "message"),
    [
        ({"encoder": {"nothing": 1.0}}, "float32", "none of its graph's nodes"),
        ({"encoder": {"linear": float("nan")}}, "float32", "inf or NaN even in float32"),
        ({}, "scaled", "overflow is 'scaled'"),
    ],
)
def test_impossible_ranges_are_refused(tmp_path, ranges, overflow, message):
    model = rounded(toy_checkpoint(tmp_path / "checkpoint"), tmp_path / "quantized", bits=8)
    with pytest.raises(LoweringError, match=message):
        lowered(model, tmp_path / "out", ranges=ranges, overflow=overflow)


def test_a_large_key_is_refused_since_the_cache_is_float16(tmp_path):
    model = rounded(toy_checkpoint(tmp_path / "checkpoint"), tmp_path / "quantized", bits=8)
    with pytest.raises(LoweringError, match="cache is float16"):
        lowered(model, tmp_path / "out", ranges={"decoder": {"rotary_1": 1e5}})
