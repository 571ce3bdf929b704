"""Every emitter of ONNX's table that no model of ours uses, as ONNX Runtime computes it, against torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipelines.errors import LoweringError
from stages.lowering.onnx import lower_program
from stages.quantizers.store import QuantizedStore, StoreWriter


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


class Joined(nn.Module):
    """A class token and position embeddings, as CLIP's tower has them; the positions are a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(8))
        self.positions = nn.Embedding(6, 8)
        self.register_buffer("order", torch.arange(6)[None], persistent=False)
        self.large = torch.randn(6, 100)  # neither a parameter nor a buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.token.expand(len(x), 1, -1), x], dim=1) + self.positions(self.order)
        return torch.cat([joined, self.large.expand(len(x), -1, -1)], dim=-1)


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (1, 4, 8, 8)))


def rows() -> torch.Tensor:
    return torch.randn(2, 5, 8)


MODULES: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), image(1, 4, 9)),
    "conv2d grouped, dilated": (nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2), image()),
    "conv2d same": (nn.Conv2d(4, 4, 3, padding="same"), image()),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), image()),
    "batch_norm": (nn.BatchNorm2d(4), image()),
    "group_norm": (nn.GroupNorm(2, 4), image()),
    "layer_norm": (nn.LayerNorm(8), rows()),
    "multi-head attention": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"), rows()),
    "max_pool2d": (nn.MaxPool2d(3, 2, 1), image()),
    "avg_pool2d": (nn.AvgPool2d(3, 2, 1), image()),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((2, 4)), image()),
    "global pooling": (nn.AdaptiveAvgPool2d(1), image()),
    "nearest": (nn.Upsample(scale_factor=2), image()),
    "bilinear": (nn.Upsample(size=(12, 20), mode="bilinear"), image()),
    "bilinear, corners aligned": (nn.Upsample(size=(12, 20), mode="bilinear", align_corners=True), image()),
    "pixel_shuffle": (nn.PixelShuffle(2), image()),
    "relu in place": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)), image()),
    "prelu": (nn.PReLU(4), image()),
    "class token, positions": (Joined(), rows()),
    "glu": (nn.GLU(), rows()),
}
FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    **{
        name: getattr(F, name)
        for name in ("relu", "relu6", "silu", "gelu", "elu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid")
    },
    **{name: getattr(torch, name) for name in ("exp", "sin", "cos", "erf", "abs", "neg", "sign", "floor", "tanh")},
    "softplus": F.softplus,
    "mish": F.mish,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "pow, sqrt, rsqrt, log": lambda x: (x.pow(2) + 1).sqrt() + (x * x + 1).rsqrt() + (x**2 + 1).log(),
    "reversed": lambda x: (1 - x) / (2 + x * x) + 3 / (x * x + 1),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0) + x.clamp(max=0.1),
    "minimum, maximum": lambda x: torch.minimum(x, -x) + torch.maximum(x, x * 2),
    "sum, mean": lambda x: x.sum(-1, keepdim=True) + x.mean((1, 2), keepdim=True) + x.sum() + x.mean(),
    "amax, amin, max, min": lambda x: x.amax(-1) + x.amin(-1) + x.max(-1)[0] + x.max() - x.min(),
    "argmax": lambda x: x.argmax(-1) + x.max(1)[1].sum(-1, keepdim=True),
    "var, std": lambda x: x.var(-1) + x.std(-1) + x.var(-1, unbiased=False),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "cumsum": lambda x: x.cumsum(1),
    "softmax, log_softmax": lambda x: x.softmax(-1) + x.log_softmax(1),
    "comparisons": lambda x: ((x > 0) & (x < 1) | (x <= -1) | ~(x >= 0.5)) != (x == 0),
    "where": lambda x: torch.where(x > 0, x, 0.0) + torch.where(x > 0, 1.0, x),
    "masked_fill": lambda x: x.masked_fill(x > 0, -3.0),
    "slice, select": lambda x: x[:, 1:-1, ::2] + x[:, 0, :4][:, None],
    "split, chunk": lambda x: torch.cat([*x.split([3, 5], -1)[::-1], *x.chunk(2, 1), *x.split(3, 1)[:1]][:2], -1),
    "stack, unbind": lambda x: torch.stack(x.unbind(1)[::-1], 2),
    "expand, repeat": lambda x: x[:1].expand(2, -1, -1) + x.repeat(1, 1, 1) + x.mean(1, keepdim=True).expand_as(x),
    "unflatten, movedim": lambda x: x.unflatten(-1, (2, 4)).permute(0, 2, 1, 3).flatten(2).mT.contiguous(),
    "index": lambda x: x[:, torch.tensor([0, 2])] + x[:, [1, 1]],
    "index of two axes": lambda x: x[torch.arange(2), x[:, :, 0].argmax(-1)],
    "gather": lambda x: x.gather(2, x.argmax(-1, keepdim=True)),
    "roll, flip": lambda x: x.roll((-2, 3), (1, 2)) + x.flip(1, -1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "pad, reflected": lambda x: F.pad(x, (2, 1), mode="reflect"),
    "arange, full, triu": lambda x: (
        x[:, :, :5] + torch.full((5, 5), -2.0).triu(1) + torch.arange(5) + torch.ones(5, 5).tril()
    ),
    "zeros_like": lambda x: torch.cat([x, torch.zeros_like(x), x.new_ones(2, 5, 1)], -1),
    "integers": lambda x: (x.to(torch.int32) + 2).float() / 2 + (x > 0).int().sum(-1, keepdim=True),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x, is_causal=True),
    "attention under a mask": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.eye(5)),
    "attention under a bool mask": lambda x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=torch.ones(5, 5).tril() > 0
    ),
}
CASES = {**MODULES, **{name: (Function(function), rows()) for name, function in FUNCTIONS.items()}}


def lowered(folder: Path, module: nn.Module, *inputs: torch.Tensor) -> list[np.ndarray]:
    program = torch.export.export(module.eval(), inputs, strict=False)
    with StoreWriter(folder) as store:
        for name, tensor in module.state_dict().items():
            if tensor.dtype == torch.float32:
                store.add_float(name, tensor.numpy())
    count = len(program.graph.output_node().args[0])
    names = [f"out{index}" for index in range(count)]
    lower_program(program, QuantizedStore.open(folder), folder / "main.onnx", outputs=names, accuracy_level=1)
    session = onnxruntime.InferenceSession(folder / "main.onnx")
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(names, feeds)


@pytest.mark.parametrize(("module", "x"), CASES.values(), ids=CASES)
def test_an_operator_computes_what_torch_does(tmp_path, module, x):
    torch.manual_seed(0)
    (found,) = lowered(tmp_path, module, x)
    with torch.no_grad():
        expected = module.eval()(x.clone()).numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_graph_may_have_several_inputs_and_outputs_of_several_types(tmp_path):
    tokens, x = torch.tensor([[3, 1, 2, 0, 1]], dtype=torch.int32), rows()[:1]
    embedding = nn.Embedding(4, 8)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = embedding

        def forward(self, tokens: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.table(tokens) + x, tokens + 1

    found = lowered(tmp_path, Two(), tokens, x)
    np.testing.assert_allclose(found[0], (embedding(tokens) + x).detach().numpy(), rtol=1e-6)
    assert found[1].tolist() == [[4, 2, 3, 1, 2]] and found[1].dtype == np.int32


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: F.relu_((y := x + 1).view(-1)).sum() + y, "aten.relu_.default"),
        (lambda x: F.adaptive_avg_pool2d(x[:, None], (3, 3)), "aten.adaptive_avg_pool2d"),
        (lambda x: F.max_pool2d(x, 2, ceil_mode=True), "aten.max_pool2d"),
    ],
)
def test_a_form_that_has_no_lowering_is_named_with_its_line(tmp_path, function, message):
    with pytest.raises(LoweringError) as error:
        lowered(tmp_path, Function(function), rows())
    assert message in error.value.message and "test_onnx_operators.py" in error.value.message and error.value.hint
