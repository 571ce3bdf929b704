"""A small image encoder in CLIP's manner (arXiv:2103.00020): patches, a class token, pre-norm transformer, projection.

It stands for a model that Tapeout knows nothing of. Its activation is an operator of its own, which no runtime has: so
this file also registers how each target computes it.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from stages.lowering.graph import register


@torch.library.custom_op("cliplike::quick_gelu", mutates_args=())
def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


@quick_gelu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@register("onnx", "cliplike.quick_gelu.default")
def quick_gelu_onnx(graph: Any, node: Any, x: Any) -> Any:
    return graph.op("Mul", x, graph.op("Sigmoid", graph.op("Mul", x, graph.operand(1.702, x))))


@register("coreml", "cliplike.quick_gelu.default")
def quick_gelu_coreml(context: Any, node: Any, x: Any) -> Any:
    from coremltools.converters.mil.mil import Builder as mb

    return mb.mul(x=x, y=mb.sigmoid(x=mb.mul(x=x, y=context.value(1.702))))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.shape
        parts = self.qkv(self.before(x)).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        return x + self.contract(quick_gelu(self.expand(self.between(x))))


class ImageEncoder(nn.Module):
    """image (1, 3, size, size) -> embedding (1, output), of length 1."""

    def __init__(self, size: int, patch: int, width: int, heads: int, layers: int, output: int):
        super().__init__()
        count = (size // patch) ** 2
        self.patches = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(count + 1, width) * width**-0.5)
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.projection = nn.Parameter(torch.randn(width, output) * width**-0.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        token = self.class_token.expand(x.shape[0], 1, -1)
        x = self.first(torch.cat([token, x], dim=1) + self.positions)
        for block in self.blocks:
            x = block(x)
        embedding = self.last(x[:, 0]) @ self.projection
        return embedding / embedding.pow(2).sum(-1, keepdim=True).sqrt()


if __name__ == "__main__":  # random weights, to try it: python -m cliplike.encoder FOLDER
    torch.manual_seed(0)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    model = ImageEncoder(size=64, patch=8, width=64, heads=4, layers=3, output=32)
    save_file(model.state_dict(), folder / "model.safetensors")
