"""FastViTHD, the vision tower of FastVLM (arXiv:2412.13303; FastViT: arXiv:2303.14189), at any size.

The deployed form holds plain convolutions, linears and layer norms only. The training form (`trainable=True`) puts a
batch norm behind each convolution and an identity beside each token mixer; `reparameterized` folds both away, exactly.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class VisionConfig:
    """image_size: square input in pixels. depths, widths, mixers ("repmixer" or "attention") and strides (rows,
    columns) have one entry a stage; strides[0] is unused: the stem has stride 4. mlp_ratio: of a feed-forward's inner
    channels to the width of its stage; it may be a fraction that gives whole channels in every stage. The output has
    widths[-1] * expansion channels."""

    image_size: int
    stem_width: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    mixers: tuple[str, ...]
    strides: tuple[tuple[int, int], ...]
    mlp_ratio: float
    ffn_kernel: int
    patch_kernel: int
    head_dim: int
    expansion: int

    def __post_init__(self) -> None:
        if self.mlp_ratio == (whole := round(self.mlp_ratio)):
            object.__setattr__(self, "mlp_ratio", whole)  # config.json says 4, not 4.0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        rows = columns = self.image_size // 4
        for row_stride, column_stride in self.strides[1:]:
            rows, columns = rows // row_stride, columns // column_stride
        return rows, columns

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def output_width(self) -> int:
        return self.widths[-1] * self.expansion

    def inner_width(self, width: int) -> int:
        """Channels inside the feed-forward of a stage of that width."""
        return round(width * self.mlp_ratio)


class ConvNorm(nn.Module):
    """A convolution and its batch norm, as trained. `fold` gives the one convolution that computes both."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))

    def fold(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the equivalent convolution, computed in float64."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = norm.bias.double() - norm.running_mean.double() * scale
        if self.conv.bias is not None:
            bias = bias + self.conv.bias.double() * scale
        weight = self.conv.weight.double() * scale[:, None, None, None]
        return weight.float(), bias.float()


def convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: tuple[int, int] = (1, 1),
    *,
    groups: int = 1,
    trainable: bool,
) -> nn.Module:
    """A padded convolution with bias; in the training form, without bias and with a batch norm behind it."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not trainable)
    return ConvNorm(conv) if trainable else conv


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvFeedForward(nn.Module):
    """Depthwise convolution, then two pointwise ones around a GELU; the residual is the caller's."""

    def __init__(self, width: int, config: VisionConfig, trainable: bool):
        super().__init__()
        self.depthwise = convolution(width, width, config.ffn_kernel, groups=width, trainable=trainable)
        inner = config.inner_width(width)
        self.expand = nn.Conv2d(width, inner, 1)
        self.contract = nn.Conv2d(inner, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.contract(F.gelu(self.expand(self.depthwise(x))))


class RepMixerBlock(nn.Module):
    """Mixes tokens by a depthwise 3x3 convolution; trained with an identity beside it, which folds into its centre."""

    def __init__(self, width: int, config: VisionConfig, trainable: bool):
        super().__init__()
        self.trainable = trainable
        self.mixer = convolution(width, width, 3, groups=width, trainable=trainable)
        self.ffn = ConvFeedForward(width, config, trainable)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(x) if self.trainable else self.mixer(x)
        return x + self.ffn(x)


class SelfAttention(nn.Module):
    """Multi-head attention over the grid of (B, C, H, W); queries, keys and values without bias."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, rows, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(batch, rows * columns, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(tokens.shape)
        return self.projection(mixed).transpose(1, 2).reshape(x.shape)


class AttentionBlock(nn.Module):
    def __init__(self, width: int, config: VisionConfig, trainable: bool):
        super().__init__()
        self.norm = ChannelNorm(width)
        self.attention = SelfAttention(width, config.head_dim)
        self.ffn = ConvFeedForward(width, config, trainable)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.ffn(x)


class Downsample(nn.Module):
    """Between stages: a strided depthwise convolution with a large kernel, then a pointwise one, each with GELU."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], kernel: int, trainable: bool):
        super().__init__()
        self.depthwise = convolution(inputs, outputs, kernel, stride, groups=inputs, trainable=trainable)
        self.pointwise = convolution(outputs, outputs, 1, trainable=trainable)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.pointwise(F.gelu(self.depthwise(x))))


class Stage(nn.Module):
    def __init__(self, config: VisionConfig, index: int, trainable: bool):
        super().__init__()
        width, attention = config.widths[index], config.mixers[index] == "attention"
        self.downsample = (
            Downsample(config.widths[index - 1], width, config.strides[index], config.patch_kernel, trainable)
            if index
            else None
        )
        self.trainable = trainable
        self.position = convolution(width, width, 7, groups=width, trainable=trainable) if attention else None
        block = AttentionBlock if attention else RepMixerBlock
        self.blocks = nn.ModuleList(block(width, config, trainable) for _ in range(config.depths[index]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        if self.position is not None:
            x = x + self.position(x) if self.trainable else self.position(x)
        for block in self.blocks:
            x = block(x)
        return x


class Expansion(nn.Module):
    """The tower's last layer: a depthwise 3x3 convolution that widens, squeeze-and-excitation, GELU."""

    def __init__(self, inputs: int, outputs: int, trainable: bool):
        super().__init__()
        self.depthwise = convolution(inputs, outputs, 3, groups=inputs, trainable=trainable)
        self.squeeze = nn.Conv2d(outputs, outputs // 16, 1)
        self.excite = nn.Conv2d(outputs // 16, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(x)
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        return F.gelu(x * gate)


class FastViT(nn.Module):
    """Images (B, 3, image_size, image_size), normalised, to features (B, tokens, output_width), row by row."""

    def __init__(self, config: VisionConfig, trainable: bool = False):
        super().__init__()
        self.config, self.trainable = config, trainable
        stem = config.stem_width
        self.patch_embed = nn.ModuleList(
            [
                convolution(3, stem, 3, (2, 2), trainable=trainable),
                convolution(stem, stem, 3, (2, 2), groups=stem, trainable=trainable),
                convolution(stem, config.widths[0], 1, trainable=trainable),
            ]
        )
        self.stages = nn.ModuleList(Stage(config, index, trainable) for index in range(len(config.widths)))
        self.expansion = Expansion(config.widths[-1], config.output_width, trainable)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image
        for layer in self.patch_embed:
            x = F.gelu(layer(x))
        for stage in self.stages:
            x = stage(x)
        return self.expansion(x).flatten(2).transpose(1, 2)


def reparameterized(tower: FastViT) -> FastViT:
    """The deployed form of a trained tower: batch norms and identities folded into convolutions, same function."""
    deployed = FastViT(tower.config, trainable=False)
    state = {}
    for name, module in tower.named_modules():
        if isinstance(module, ConvNorm):
            weight, bias = module.fold()
            if name.endswith((".mixer", ".position")):
                centre = module.conv.kernel_size[0] // 2
                weight[:, 0, centre, centre] += 1.0
            state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
    trained = tower.state_dict()
    for name in deployed.state_dict():
        state.setdefault(name, trained.get(name))
    deployed.load_state_dict(state)
    return deployed.eval()
