"""The Core ML table of operators: each lowered, executed by the reference executor in float16, held against torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipelines.errors import LoweringError
from stages.lowering.coreml import lower_coreml
from stages.models.vlm import ModelConfig, ModuleConfig
from stages.quantizers.store import QuantizedStore, StoreWriter
from stages.runtimes.coreml_reference import MLProgram

Function = Callable[..., Any]


class Applied(nn.Module):
    """A function as a module: what a row of the table is."""

    def __init__(self, case: str):
        super().__init__()
        self.function = FUNCTIONS[case][0]

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class Paired(nn.Module):
    """A function of two tensors, the second of integers 0..3."""

    def __init__(self, case: str):
        super().__init__()
        self.function = PAIRS[case][0]

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return self.function(x, y)


class Learned(nn.Module):
    """A layer with weights."""

    def __init__(self, case: str):
        super().__init__()
        self.layer = LAYERS[case][0]()

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


class Tokens(nn.Module):
    """What ordinary transformers do with parameters and buffers: class tokens, positions, masks, scales."""

    def __init__(self) -> None:
        super().__init__()
        self.cls, self.positions = nn.Parameter(torch.randn(1, 1, 32)), nn.Embedding(6, 32)
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("offset", torch.randn(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.positions(torch.arange(x.shape[1])) + self.offset
        mask = torch.full((6, 6), float("-inf")).triu(1)
        scores = (x @ x.transpose(1, 2)) * self.scale.exp() * 0.05 + mask
        return scores.softmax(-1) @ x


LOW, HIGH = (-2.0, 2.0), (0.1, 3.0)
FUNCTIONS: dict[str, tuple[Function, tuple[int, ...], tuple[float, float]]] = {
    "expand": (lambda x: x[:, :1].expand(-1, 5, -1) + 0, (2, 3, 8), LOW),
    "slice": (lambda x: x[:, 1:-1, ::2], (2, 4, 8), LOW),
    "select": (lambda x: x[:, -1], (2, 3, 8), LOW),
    "cat": (lambda x: torch.cat([x, x * 2], -1), (2, 3, 8), LOW),
    "stack": (lambda x: torch.stack([x, -x], 1), (2, 3), LOW),
    "split": (lambda x: torch.cat(x.split([3, 5], -1)[::-1], -1), (2, 8), LOW),
    "chunk": (lambda x: torch.mul(*x.chunk(2, -1)), (2, 8), LOW),
    "unbind": (lambda x: torch.sub(*x.unbind(1)), (3, 2, 4), LOW),
    "roll": (lambda x: x.roll((1, -2), (1, 2)), (1, 4, 6), LOW),
    "flip": (lambda x: x.flip(-1), (2, 8), LOW),
    "repeat": (lambda x: x.repeat(2, 1, 3), (2, 4), LOW),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), (2, 3, 4), LOW),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), value=0.5), (1, 2, 3, 4), LOW),
    "pad reflect": (lambda x: F.pad(x, (1, 2), mode="reflect"), (1, 3, 6), LOW),
    "permute": (lambda x: x.permute(2, 0, 1).flatten(1).t(), (2, 3, 4), LOW),
    "unflatten": (lambda x: x.unflatten(-1, (2, 4)).movedim(1, 2), (2, 3, 8), LOW),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), (1, 8, 3, 3), LOW),
    "tril": (lambda x: x.tril() + x.triu(1) * 2, (1, 4, 4), LOW),
    "pow": (lambda x: x**2 + x**3 + x.abs() ** 1.5, (2, 8), LOW),
    "rsqrt": (lambda x: x.rsqrt() + x.sqrt() + x.reciprocal(), (2, 8), HIGH),
    "log": (lambda x: x.log() + x.log_softmax(-1), (2, 8), HIGH),
    "clamp": (lambda x: x.clamp(-1, 0.5) + x.clamp(min=0) + x.clamp_max(1.0), (2, 8), LOW),
    "hardswish": (F.hardswish, (2, 8), (-5, 5)),
    "hardsigmoid": (F.hardsigmoid, (2, 8), (-5, 5)),
    "hardtanh": (F.hardtanh, (2, 8), LOW),
    "relu6": (F.relu6, (2, 8), (-3, 9)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), (2, 8), LOW),
    "elu": (F.elu, (2, 8), LOW),
    "softplus": (F.softplus, (2, 8), (-30, 30)),
    "mish": (F.mish, (2, 8), LOW),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), (2, 8), LOW),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), (2, 8), LOW),
    "sin": (lambda x: x.sin() + x.cos() + x.exp() + x.erf() + x.tanh(), (2, 8), LOW),
    "neg": (lambda x: -x + x.abs() + x.sign() + x.floor() + x.ceil() + x.round(), (2, 8), LOW),
    "alpha": (lambda x: torch.add(x, x.relu(), alpha=3) + torch.sub(x, x.exp(), alpha=0.5), (2, 8), LOW),
    "rsub": (lambda x: 1 - x, (2, 8), LOW),
    "div": (lambda x: x / 3 + 2 / x + x / x.exp(), (2, 8), HIGH),
    "floor div": (lambda x: torch.div(x, 0.7, rounding_mode="floor"), (2, 8), HIGH),
    "comparisons": (lambda x: torch.where((x > 0) & (x <= 1) | (x < -1), x, -2.0 * x), (2, 8), LOW),
    "truth as numbers": (lambda x: (x > 0) * x + (x != 0).float(), (2, 8), LOW),
    "masked_fill": (lambda x: x.masked_fill(x.ge(0.5).logical_not(), float("-inf")).softmax(-1), (2, 16), LOW),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), (1, 2, 8, 8), LOW),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), (1, 2, 8, 8), LOW),
    "avg_pool2d without padding": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (1, 2, 8, 8), LOW),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (3, 5)), (1, 2, 8, 8), LOW),
    "global pool": (lambda x: F.adaptive_avg_pool2d(x, 1), (1, 2, 8, 8), LOW),
    "even pool": (lambda x: F.adaptive_avg_pool2d(x, 4), (1, 2, 8, 8), LOW),
    "upsample nearest": (lambda x: F.interpolate(x, scale_factor=2), (1, 2, 4, 5), LOW),
    "upsample nearest odd": (lambda x: F.interpolate(x, size=(7, 9)), (1, 2, 4, 5), LOW),
    "upsample bilinear": (lambda x: F.interpolate(x, size=(8, 7), mode="bilinear"), (1, 2, 4, 5), LOW),
    "upsample corners": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        (1, 2, 4, 5),
        LOW,
    ),
    "sum": (lambda x: x.sum(1) + x.sum() + x.mean(), (2, 3, 4), LOW),
    "amax": (lambda x: x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True) + x.max(-1).values[:, None], (2, 8), LOW),
    "argmax": (lambda x: x.argmax(-1), (4, 8), LOW),
    "norm": (lambda x: F.normalize(x, dim=-1) + x / x.norm(dim=-1, keepdim=True), (2, 8), LOW),
    "large norm": (lambda x: F.normalize(x, dim=-1), (2, 8), (-9000.0, 9000.0)),
    "variance": (lambda x: x.var(-1, correction=0), (2, 8), LOW),
    "cumsum": (lambda x: x.cumsum(-1), (2, 8), LOW),
    "constants": (lambda x: x * torch.arange(8) + torch.full((8,), 0.5) + torch.linspace(0, 1, 8), (2, 8), LOW),
    "likes": (lambda x: torch.zeros_like(x) + torch.ones_like(x) * x, (2, 8), LOW),
    "lifted": (lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]), (2, 4), LOW),
    "index": (lambda x: x[:, torch.tensor([2, 0, 1])], (2, 3, 4), LOW),
    "causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.5), (1, 2, 5, 8), LOW),
    "masked attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(5, 5).tril().bool()),
        (1, 2, 5, 8),
        LOW,
    ),
}  # fmt: skip
PAIRS: dict[str, tuple[Function, tuple[int, ...], tuple[int, ...]]] = {
    "integers": (lambda x, y: x * (y + 1) + (y == 2), (2, 8), (2, 8)),
    "gather": (lambda x, y: x.gather(1, y.long()), (2, 4), (2, 3)),
    "index_select": (lambda x, y: x.index_select(1, y), (2, 4, 3), (5,)),
    "rows at argmax": (lambda x, y: (x * (y == y.amax(-1, keepdim=True))).sum(1), (2, 8), (2, 8)),
    "mask from ids": (lambda x, y: x.masked_fill((y == 0), -1e9).softmax(-1), (2, 8), (2, 8)),
    "where": (lambda x, y: torch.where(y > 1, x, 0), (2, 8), (2, 8)),
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 5), (2, 3, 8)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1), (1, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), (1, 4, 9, 9)),
    "conv2d same": (lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=2), (1, 4, 9, 9)),
    "conv2d without bias": (lambda: nn.Conv2d(4, 6, (1, 3), padding=(0, 1), bias=False), (1, 4, 5, 6)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), (1, 4, 5, 5)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 4, 2, 1, groups=2), (1, 4, 5)),
    "batch_norm": (lambda: _with_statistics(nn.BatchNorm2d(4)), (1, 4, 5, 5)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (1, 4, 5, 5)),
    "instance_norm": (lambda: nn.InstanceNorm2d(4, affine=True), (1, 4, 5, 5)),
    "layer_norm": (lambda: nn.LayerNorm(8), (2, 3, 8)),
    "rms_norm": (lambda: nn.RMSNorm(8), (2, 3, 8)),
    "prelu": (lambda: nn.PReLU(4), (1, 4, 5, 5)),
    "multi-head attention": (lambda: _SelfAttention(), (1, 5, 32)),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True), (1, 5, 32)),
    "tokens": (lambda: Tokens(), (1, 5, 32)),
}


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def _with_statistics(norm: nn.BatchNorm2d) -> nn.Module:
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


@dataclass
class Lowered:
    program: MLProgram
    description: dict[str, Any]


def lowered(module: nn.Module, config: ModuleConfig, path: Path, **options: Any) -> Lowered:
    """A module of one graph, its tensors in float32, as main.mlpackage."""
    (path / "store").mkdir(parents=True)
    with StoreWriter(path / "store") as writer:
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                writer.add_float(name, tensor.numpy().astype(np.float32))
    store = QuantizedStore.open(path / "store")
    model = ModelConfig(None, None, None, config)
    description = lower_coreml(model, store, path / "out", context=0, prefill_chunk=0, **options)
    return Lowered(MLProgram(path / "out" / "main.mlpackage"), description)


def compare(kind: type[nn.Module], case: str, path: Path, inputs: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(0)
    module = kind(case).eval()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    with torch.no_grad():
        expected = module(*inputs.values()).numpy()
    specs = {name: {"shape": list(x.shape), "dtype": str(x.dtype)[6:]} for name, x in inputs.items()}
    target = f"{kind.__module__}.{kind.__name__}"
    made = lowered(module, ModuleConfig(target, {"case": case}, specs, ["y"]), path)
    found = made.program.predict({name: x.numpy() for name, x in inputs.items()})["y"]
    assert found.shape == expected.shape
    spread = max(float(np.abs(expected).max()), 1e-3)
    assert float(np.abs(found.astype(np.float64) - expected).max()) <= 4e-3 * spread


def random(shape: tuple[int, ...], bounds: tuple[float, float]) -> torch.Tensor:
    x = torch.empty(shape).uniform_(*bounds, generator=torch.Generator().manual_seed(1))
    return x.half().float()


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function(case, tmp_path):
    _, shape, bounds = FUNCTIONS[case]
    compare(Applied, case, tmp_path, {"x": random(shape, bounds)})


@pytest.mark.parametrize("case", PAIRS)
def test_a_function_of_integers_too(case, tmp_path):
    _, shape, other = PAIRS[case]
    numbers = torch.randint(0, 4, other, generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    compare(Paired, case, tmp_path, {"x": random(shape, LOW), "y": numbers})


@pytest.mark.parametrize("case", LAYERS)
def test_a_layer(case, tmp_path):
    compare(Learned, case, tmp_path, {"x": random(LAYERS[case][1], LOW)})


def test_what_an_operator_cannot_do_is_named_with_its_line(tmp_path):
    config = ModuleConfig(f"{__name__}.Refused", {}, {"x": {"shape": [1, 2, 8, 8], "dtype": "float32"}}, ["y"])
    with pytest.raises(LoweringError, match=r"max_pool2d.*dilation.*test_coreml_operators.py:\d+"):
        lowered(Refused(), config, tmp_path)


def test_a_tensor_of_six_axes_is_refused_with_its_line(tmp_path):
    config = ModuleConfig(f"{__name__}.Windows", {}, {"x": {"shape": [1, 4, 8, 8], "dtype": "float32"}}, ["y"])
    with pytest.raises(LoweringError, match=r"test_coreml_operators.py:\d+ .*more than 5 axes"):
        lowered(Windows(), config, tmp_path)


class Windows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(1, 4, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(4, 16, 4)


class Refused(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, 2, dilation=2)
