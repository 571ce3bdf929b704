"""FastViTHD as its authors wrote it, straight from a checkpoint's tensors: every branch, batch norm and layer scale.

An oracle for the folded tower that is shipped: it takes the state of Apple's model, or of timm's fastvit_mci3, as
deployed, as trained or mixed, and shares no code with what is tested.
"""

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]


def batch_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    weight, bias, mean, variance = (
        state[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def conv(state: State, name: str, x: torch.Tensor, stride: int = 1, depthwise: bool = False) -> torch.Tensor:
    weight = state[f"{name}.weight"]
    padding = weight.shape[-1] // 2
    groups = x.shape[1] if depthwise else 1
    return F.conv2d(x, weight, state.get(f"{name}.bias"), stride, padding, groups=groups)


def squeeze_excite(state: State, names: tuple[str, str], x: torch.Tensor) -> torch.Tensor:
    pooled = x.mean((2, 3), keepdim=True)
    return x * torch.sigmoid(conv(state, names[1], F.relu(conv(state, names[0], pooled))))


class Apple:
    root = "model.vision_tower.vision_tower.model."
    stem, ffn, final = "patch_embed", "convffn", "conv_exp"
    kernels, pointwise, skip = "rbr_conv", "rbr_scale", "rbr_skip"
    single_large, large = "lkb_reparam", "lkb_origin"
    position, gamma = "pe", ""
    squeeze = ("se.reduce", "se.expand")


class Timm:
    root = "model.vision_tower.timm_model."
    stem, ffn, final = "stem", "mlp", "final_conv"
    kernels, pointwise, skip = "conv_kxk", "conv_scale", "identity"
    single_large, large = "reparam_conv", "large_conv"
    position, gamma = "pos_enc", ".gamma"
    squeeze = ("se.fc1", "se.fc2")


class Oracle:
    """names: Apple or Timm. state: the whole checkpoint's tensors; computed in float64."""

    def __init__(self, state: State, names: type):
        self.names = names
        self.state = {
            name.removeprefix(names.root): tensor.double()
            for name, tensor in state.items()
            if name.startswith(names.root)
        }

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix + ".") for name in self.state)

    def mobile_one(self, name: str, x: torch.Tensor, stride: int = 1, depthwise: bool = False) -> torch.Tensor:
        """The linear part of a MobileOne block."""
        state, names = self.state, self.names
        if self.has(f"{name}.reparam_conv"):
            return conv(state, f"{name}.reparam_conv", x, stride, depthwise)
        total = torch.zeros(())
        if self.has(f"{name}.{names.skip}"):
            total = total + batch_norm(state, f"{name}.{names.skip}", x)
        branches = [f"{name}.{names.pointwise}"]
        branches += [f"{name}.{names.kernels}.{index}" for index in range(9)]
        for branch in branches:
            if self.has(branch):
                total = total + batch_norm(state, f"{branch}.bn", conv(state, f"{branch}.conv", x, stride, depthwise))
        return total

    def downsample(self, name: str, x: torch.Tensor) -> torch.Tensor:
        state, names = self.state, self.names
        large = f"{name}.0"
        if self.has(f"{large}.{names.single_large}"):
            x = conv(state, f"{large}.{names.single_large}", x, 2, True)
        else:
            both = (f"{large}.{names.large}", f"{large}.small_conv")
            x = sum(batch_norm(state, f"{each}.bn", conv(state, f"{each}.conv", x, 2, True)) for each in both)
        x = F.gelu(x)
        return F.gelu(self.mobile_one(f"{name}.1", x))

    def encode_position(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if self.has(f"{name}.reparam_conv"):
            return conv(self.state, f"{name}.reparam_conv", x, 1, True)
        return conv(self.state, f"{name}.{self.names.position}", x, 1, True) + x

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        state, gamma = self.state, self.names.gamma
        if self.has(f"{name}.token_mixer.qkv"):
            mixed = self.attention(f"{name}.token_mixer", self.channel_norm(f"{name}.norm", x))
            x = x + state[f"{name}.layer_scale_1{gamma}"] * mixed
            return x + state[f"{name}.layer_scale_2{gamma}"] * self.feed_forward(name, x)
        mixer = f"{name}.token_mixer"
        if self.has(f"{mixer}.reparam_conv"):
            x = conv(state, f"{mixer}.reparam_conv", x, 1, True)
        else:
            difference = self.mobile_one(f"{mixer}.mixer", x, 1, True) - self.mobile_one(f"{mixer}.norm", x, 1, True)
            x = x + state[f"{mixer}.layer_scale{gamma}"] * difference
        return x + state[f"{name}.layer_scale{gamma}"] * self.feed_forward(name, x)

    def feed_forward(self, name: str, x: torch.Tensor) -> torch.Tensor:
        ffn = f"{name}.{self.names.ffn}"
        x = batch_norm(self.state, f"{ffn}.conv.bn", conv(self.state, f"{ffn}.conv.conv", x, 1, True))
        return conv(self.state, f"{ffn}.fc2", F.gelu(conv(self.state, f"{ffn}.fc1", x)))

    def channel_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-5)
        return self.state[f"{name}.weight"].view(1, -1, 1, 1) * x + self.state[f"{name}.bias"].view(1, -1, 1, 1)

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        batch, channels, rows, columns = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = tokens @ self.state[f"{name}.qkv.weight"].T
        query, key, value = qkv.view(batch, rows * columns, 3, channels // 32, 32).permute(2, 0, 3, 1, 4)
        weights = (query * 32**-0.5 @ key.transpose(-2, -1)).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, rows * columns, channels)
        mixed = mixed @ self.state[f"{name}.proj.weight"].T + self.state[f"{name}.proj.bias"]
        return mixed.transpose(1, 2).reshape(x.shape)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        if self.names is Timm:
            stages = len({name.split(".")[1] for name in self.state if name.startswith("stages.")})
            for stage in range(stages):
                if self.has(f"stages.{stage}.downsample"):
                    x = self.downsample(f"stages.{stage}.downsample.proj", x)
                if self.has(f"stages.{stage}.pos_emb"):
                    x = self.encode_position(f"stages.{stage}.pos_emb", x)
                x = self.blocks(f"stages.{stage}.blocks", x)
            return x
        modules = len({name.split(".")[1] for name in self.state if name.startswith("network.")})
        for index in range(modules):
            name = f"network.{index}"
            if self.has(f"{name}.proj"):
                x = self.downsample(f"{name}.proj", x)
            elif self.has(f"{name}.0"):
                x = self.blocks(name, x)
            else:
                x = self.encode_position(name, x)
        return x

    def blocks(self, name: str, x: torch.Tensor) -> torch.Tensor:
        index = 0
        while self.has(f"{name}.{index}"):
            x = self.block(f"{name}.{index}", x)
            index += 1
        return x

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) -> (B, tokens, channels), before the projector."""
        names, x = self.names, image.double()
        x = F.gelu(self.mobile_one(f"{names.stem}.0", x, 2))
        x = F.gelu(self.mobile_one(f"{names.stem}.1", x, 2, True))
        x = F.gelu(self.mobile_one(f"{names.stem}.2", x))
        x = self.body(x)
        x = self.mobile_one(names.final, x, 1, True)
        x = F.gelu(squeeze_excite(self.state, tuple(f"{names.final}.{each}" for each in names.squeeze), x))
        return x.flatten(2).transpose(1, 2)
