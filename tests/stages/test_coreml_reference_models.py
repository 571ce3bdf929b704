"""The reference executor on what coremltools made of small models of many kinds: each must compute what torch does.

Nothing here comes from our own emitter: models are torch modules, converted by coremltools' tracer.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.runtimes.coreml_reference import MLProgram

TARGETS = {name: getattr(ct.target, name) for name in ("iOS15", "iOS16", "iOS17", "iOS18")}
PRECISIONS = {"float32": ct.precision.FLOAT32, "float16": ct.precision.FLOAT16}


class Residual(nn.Module):
    """A block of a ResNet, with batch normalisation that has seen data."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class Residuals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 16, 2))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1)).softmax(-1)


class Mobile(nn.Module):
    """Inverted residual with squeeze-and-excite, hard swish, hard sigmoid, lopsided average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 5, 2, 2, groups=24), nn.BatchNorm2d(24), nn.ReLU6())
        self.squeeze = nn.Sequential(nn.Conv2d(24, 6, 1), nn.PReLU(6), nn.Conv2d(6, 24, 1), nn.Hardsigmoid())
        self.project = nn.Conv2d(24, 8, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.expand(x))
        x = self.project(x * self.squeeze(x.mean((2, 3), keepdim=True)))
        x = F.avg_pool2d(x, 3, 2, 1, ceil_mode=False, count_include_pad=False)
        return F.elu(F.leaky_relu(x, 0.2) + F.softplus(x))


class Text(nn.Module):
    """A classifier: embedding, two directions of LSTM, a GRU on top, the mean and the maximum over time."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        make = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.recurrent = make(
            12, 10, num_layers=2 if kind == "lstm" else 1, bidirectional=kind == "lstm", batch_first=True
        )
        self.head = nn.Linear(40 if kind == "lstm" else 20, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        sequence, _ = self.recurrent(self.embed(ids))
        return F.log_softmax(self.head(torch.cat([sequence.mean(1), sequence.amax(1)], -1)), -1)


class Encoder(nn.Module):
    """Two layers of a transformer with scaled_dot_product_attention and a mask; GELU by tanh; positions learned."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(40, 32), nn.Parameter(torch.randn(9, 32) * 0.1)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(32),
                    "qkv": nn.Linear(32, 96),
                    "out": nn.Linear(32, 32),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(approximate="tanh"), nn.Linear(64, 32)
                    ),
                }
            )
            for _ in range(2)
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.positions
        for layer in self.layers:
            q, k, v = layer["qkv"](layer["norm"](x)).reshape(1, 9, 3, 4, 8).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + layer["out"](attended.transpose(1, 2).reshape(1, 9, 32))
            x = x + layer["mlp"](x)
        return x


class Unet(nn.Module):
    """Down and up again: transposed convolution, bilinear and nearest upsampling, reflected edges, group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(2, 8), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.InstanceNorm2d(16, affine=True), nn.Tanh())
        self.bottom = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, dilation=1), nn.Sigmoid())
        self.up = nn.ConvTranspose2d(16, 16, 3, 2, 1, output_padding=1)
        self.last = nn.Conv2d(24, 4, 3, padding=1)
        self.pixels = nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        down = self.down(first)
        up = self.up(self.bottom(down)) + F.interpolate(self.bottom(down), scale_factor=2, mode="nearest")
        wide = F.interpolate(up, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.pixels(self.last(torch.cat([first, wide], 1)))


class Moves(nn.Module):
    """Moves numbers about: sorts, picks, scatters, cumulates, pads, unfolds, rolls."""

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, ...]:
        top = torch.topk(x, 3, dim=-1)
        picked = torch.gather(x, 1, places)
        scattered = torch.zeros_like(x).scatter(1, places, picked * 2)
        added = torch.zeros_like(x).scatter_add(1, places, picked)
        order = torch.argsort(x, dim=-1, descending=True)
        padded = F.pad(F.pad(x[None], (2, 1), mode="replicate"), (1, 3), value=0.5)
        triangle = torch.tril(x @ x.T) + torch.triu(x @ x.T, 1) * 0.5
        return (
            top.values.sum(-1, keepdim=True) + top.indices,
            scattered + added,
            x.cumsum(0) + order,
            padded.flip(-1),
            triangle,
            torch.where(x > 0, x.abs().sqrt(), x.pow(2)),
            x.clamp(-1, 1).roll(2, 1) // 0.3,
            F.one_hot(places, 9).float().sum(1),
            torch.stack([x.std(1), x.norm(dim=1), x.logsumexp(1), x.amin(1)]),
        )


class Functions(nn.Module):
    """Functions of one number, over a range that all of them have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = x.tanh() * 0.9
        return torch.cat(
            [
                *(small.acos(), small.asin(), small.atan(), small.atanh(), small.cos(), small.cosh(), small.sin()),
                *(small.sinh(), small.tan(), small.exp(), small.exp2(), small.erf(), small.sign(), x.ceil(), x.floor()),
                *(x.round(), 1.5 / (x.abs() + 1), (x.abs() + 1).log(), (x.abs() + 1).rsqrt(), x.square(), x.relu()),
                *(F.softsign(x), F.mish(x), F.selu(x), F.hardtanh(x), F.softmin(x, -1), F.glu(x, -1)),
                *(torch.remainder(x, 0.7), x.maximum(small), x.minimum(small)),
            ],
            -1,
        )


class Unshuffled(nn.Module):
    """What iOS 15 does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_unshuffle(x, 2)


class Images(nn.Module):
    """Resampling in all the ways that torch has and coremltools takes."""

    def forward(self, x: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            F.interpolate(x, size=(9, 14), mode="bilinear", align_corners=True),
            F.interpolate(x, size=(12, 12), mode="bilinear", align_corners=False),
            F.interpolate(x, scale_factor=(3.0, 2.0), mode="nearest"),
            F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False),
            F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.avg_pool2d(x, 2, 2, ceil_mode=False),
            F.unfold(x, 2).transpose(1, 2),
            F.conv3d(x[None], torch.ones(2, 3, 2, 2, 2)[:, :1])
            if x.dim() == 3
            else F.conv1d(x[:, 0], torch.ones(2, 6, 3)),
        )


@dataclass
class Case:
    """A module, its inputs, and how exact float16 is on it: relative to the largest number of each output."""

    module: Callable[[], nn.Module]
    inputs: dict[str, np.ndarray]
    half: float = 1e-2


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def integers(*shape: int, below: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, below, shape).astype(np.int32)


PLACES = np.stack([np.random.default_rng(row).permutation(9)[:4] for row in range(4)]).astype(np.int32)
SPREAD = (
    np.random.default_rng(0).permutation(np.linspace(-2, 2, 36, dtype=np.float32)).reshape(4, 9)
)  # no ties in float16
CASES = {
    "resnet": Case(Residuals, {"x": normal(1, 3, 33, 40)}),
    "mobile": Case(Mobile, {"x": normal(1, 3, 20, 15)}),
    "lstm": Case(lambda: Text("lstm"), {"ids": integers(1, 7, below=30)}),
    "gru": Case(lambda: Text("gru"), {"ids": integers(1, 7, below=30)}),
    "rnn": Case(lambda: Text("rnn"), {"ids": integers(1, 7, below=30)}),
    "encoder": Case(Encoder, {"ids": integers(1, 9, below=40), "mask": np.triu(np.full((9, 9), -1e4, np.float32), 1)}),
    "unet": Case(Unet, {"x": normal(1, 1, 16, 24)}),
    "moves": Case(Moves, {"x": SPREAD, "places": PLACES}, half=0.05),
    "functions": Case(Functions, {"x": normal(5, 6)}, half=2e-2),
    "images": Case(Images, {"x": normal(1, 3, 6, 8), "grid": np.clip(normal(1, 4, 5, 2), -1.2, 1.2)}),
    "unshuffled": Case(Unshuffled, {"x": normal(1, 3, 6, 8)}),
}
RUNS = [  # each target, each precision, each model at least once; all of them together take minutes
    ("resnet", "iOS15", "float32"),
    ("resnet", "iOS18", "float16"),
    ("mobile", "iOS17", "float32"),
    ("mobile", "iOS16", "float16"),
    ("lstm", "iOS15", "float32"),
    ("lstm", "iOS18", "float16"),
    ("gru", "iOS17", "float32"),
    ("rnn", "iOS18", "float32"),
    ("encoder", "iOS16", "float32"),
    ("encoder", "iOS18", "float16"),
    ("unet", "iOS18", "float32"),
    ("unet", "iOS15", "float16"),
    ("moves", "iOS17", "float32"),
    ("moves", "iOS15", "float32"),
    ("functions", "iOS18", "float32"),
    ("functions", "iOS16", "float16"),
    ("images", "iOS17", "float32"),
    ("images", "iOS15", "float16"),
    ("unshuffled", "iOS16", "float32"),
]
ALL = [(model, target, precision) for model in CASES for target in TARGETS for precision in PRECISIONS]
ALL = [run for run in ALL if run[:2] != ("unshuffled", "iOS15")]
EVERY = [pytest.param(*run, marks=() if run in RUNS else pytest.mark.slow, id="-".join(run)) for run in ALL]


@pytest.mark.parametrize(("model", "target", "precision"), EVERY)
def test_a_conversion_computes_what_torch_does(tmp_path, model, target, precision):
    case = CASES[model]
    torch.manual_seed(0)
    module = case.module()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    module.eval()
    path = tmp_path / "model.mlpackage"
    convert(module, case.inputs, path, target=TARGETS[target], precision=PRECISIONS[precision])
    with torch.no_grad():
        expected = module(*(wide(torch.from_numpy(value)) for value in case.inputs.values()))
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    program = MLProgram(path, precision=precision)
    found = program.predict(case.inputs)
    assert len(found) == len(expected)
    for (name, result), truth in zip(found.items(), expected, strict=True):
        assert result.shape == tuple(truth.shape), name
        error = np.abs(result.astype(np.float64) - truth.numpy()).max()
        assert error <= (1e-4 if precision == "float32" else case.half) * max(1, float(truth.abs().max())), name


def wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_floating_point() else tensor.long()


def convert(module: nn.Module, inputs: dict[str, np.ndarray], path: Path, *, target, precision, **options) -> None:
    """By coremltools' tracer. Integers are int64 in torch, int32 in Core ML."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = torch.jit.trace(module, [wide(torch.from_numpy(value)) for value in inputs.values()], check_trace=False)
        types = [ct.TensorType(name, value.shape, dtype=value.dtype) for name, value in inputs.items()]
        ct.convert(
            trace,
            inputs=options.pop("types", types),
            minimum_deployment_target=target,
            compute_precision=precision,
            skip_model_load=True,
            **options,
        ).save(str(path))
