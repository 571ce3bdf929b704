"""A torch module that nobody here planned for (tests/examples/clip), from its class to both runtimes."""

import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from pipelines.errors import CheckpointError, LoweringError
from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, QuantizedModel
from stages.convert import convert
from stages.evaluation.parity import measure_parity
from stages.load import load
from stages.lowering.graph import TABLES
from stages.probe import probe
from stages.quantize import quantize
from stages.runtimes.opening import open_graph
from stages.schema import ModelConfig, ProbeConfig
from tests.conf import group

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "tests/examples/clip"
DEVICES = {"onnx": "pixel-8", "coreml": "iphone-15-pro"}


def workspace(path: Path) -> Workspace:
    path.mkdir(parents=True)
    return Workspace(path, path.parent / "scratch")


@pytest.fixture(scope="module")
def encoder():
    sys.path.insert(0, str(EXAMPLE))
    from cliplike.encoder import ImageEncoder

    yield ImageEncoder
    sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def settings(encoder, tmp_path_factory) -> ModelConfig:
    values = OmegaConf.to_container(OmegaConf.load(EXAMPLE / "conf/model/clip.yaml"))["model"]
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    arguments = {key: value for key, value in values["module"].items() if key != "_target_"}
    save_file(encoder(**arguments).state_dict(), folder / "model.safetensors")
    return ModelConfig(**{**values, "path": str(folder)})


@pytest.fixture(scope="module")
def model(settings, tmp_path_factory) -> QuantizedModel:
    base = tmp_path_factory.mktemp("quantized")
    checkpoint = load(settings, workspace(base / "load"))
    return quantize(checkpoint, group("quantize", "int8"), workspace(base / "quantize"))


@pytest.mark.parametrize("target", DEVICES)
def test_it_gives_what_torch_gives(target: str, model: QuantizedModel, tmp_path: Path) -> None:
    found = probe(model, ProbeConfig(images=2, tokens=1, threads=1, folder=None, seed=0), workspace(tmp_path / "probe"))
    device = group("device", DEVICES[target])
    out = workspace(tmp_path / "convert")
    device_model = convert(model, group("convert", "default"), device, out, found)
    assert isinstance(device_model, DeviceModel)
    parity = measure_parity(model, found, device_model, 1, lambda *report: None)
    assert parity["error"] < (1e-5 if target == "onnx" else 5e-3) and parity["top1"] == 1.0


@pytest.mark.parametrize("target", DEVICES)
def test_an_operator_without_a_lowering_is_named(target, model, tmp_path, monkeypatch) -> None:
    monkeypatch.delitem(TABLES[target].emitters, "cliplike.quick_gelu.default")
    with pytest.raises(LoweringError) as error:
        convert(model, group("convert", "default"), group("device", DEVICES[target]), workspace(tmp_path / "convert"))
    assert "cliplike.quick_gelu.default" in error.value.message
    assert "cliplike/encoder.py" in error.value.message and "quick_gelu(self.expand" in error.value.message
    assert f'register("{target}", "cliplike.quick_gelu.default")' in error.value.hint


class Masked(torch.nn.Module):
    """What modules do that were not made to be exported: inputs in no alphabetical order, a saved table of integers,
    an activation that overwrites, a mask of -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = torch.nn.Embedding(8, 16), torch.nn.Linear(16, 16)
        self.norm, self.relu = torch.nn.BatchNorm1d(16), torch.nn.ReLU(inplace=True)
        self.register_buffer("order", torch.arange(6).flip(0))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.mix(self.embed(tokens)).mT).mT)[:, self.order] + bias
        scores = (x @ x.mT).masked_fill(mask[:, None] == 0, float("-inf"))
        return scores.softmax(-1) @ x


MASKED_INPUTS = {
    "tokens": {"shape": [1, 6], "dtype": "int32"},
    "mask": {"shape": [1, 6], "dtype": "int32"},
    "bias": {"shape": [1, 6, 16], "dtype": "float32"},
}


@pytest.mark.parametrize("target", DEVICES)
def test_a_module_that_was_not_made_for_export(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Masked()
    (tmp_path / "model").mkdir()
    save_file(module.state_dict(), tmp_path / "model" / "model.safetensors")
    settings = ModelConfig(
        str(tmp_path / "model"), None, None, {"_target_": f"{__name__}.Masked"}, MASKED_INPUTS, ["mixed"]
    )
    model = quantize(
        load(settings, workspace(tmp_path / "load")), group("quantize", "none"), workspace(tmp_path / "quantize")
    )
    found = probe(model, ProbeConfig(images=1, tokens=1, threads=1, folder=None, seed=0), workspace(tmp_path / "probe"))
    device = group("device", DEVICES[target])
    device_model = convert(model, group("convert", "default"), device, workspace(tmp_path / "convert"), found)
    tokens, mask = torch.tensor([[5, 2, 7, 1, 0, 3]]), torch.tensor([[1, 1, 0, 1, 0, 1]])
    bias = torch.randn(1, 6, 16)
    with torch.no_grad():
        expected = module.eval()(tokens, mask, bias).numpy()
    given = {"tokens": tokens.int().numpy(), "mask": mask.int().numpy(), "bias": bias.numpy()}
    result = open_graph(device_model).run(given)["mixed"]
    assert abs(result - expected).max() < 1e-2 * abs(expected).max()


MISTAKES = [
    ({"module": {"_target_": "cliplike.encoder.ImageEncodr"}}, CheckpointError, "cannot be made"),
    ({"module": {"_target_": "cliplike.encoder.ImageEncoder", "sise": 64}}, CheckpointError, "sise"),
    ({"module": {"_target_": "cliplike.encoder.quick_gelu"}}, CheckpointError, "cannot be made"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), MISTAKES)
def test_mistakes_in_the_configuration(changes, kind, message, settings, tmp_path) -> None:
    with pytest.raises(kind, match=message):
        load(ModelConfig(**{**vars(settings), **changes}), workspace(tmp_path / "load"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inputs": {"picture": {"shape": [1, 3, 64, 64], "dtype": "float32"}}},
            "takes image; model.inputs names picture",
        ),
        ({"outputs": ["embedding", "tokens"]}, "returns 1 tensors"),
    ],
)
def test_inputs_and_outputs_must_be_the_modules(changes, message, settings, tmp_path) -> None:
    checkpoint = load(ModelConfig(**{**vars(settings), **changes}), workspace(tmp_path / "load"))
    model = quantize(checkpoint, group("quantize", "int8"), workspace(tmp_path / "quantize"))
    with pytest.raises(LoweringError, match=message):
        probe(model, ProbeConfig(images=1, tokens=1, threads=1, folder=None, seed=0), workspace(tmp_path / "probe"))
