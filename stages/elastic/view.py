"""The elastic view: any subnet of a model, as slices of the model's own tensors.

Nothing here knows how a layer computes. A subnet is the plain model of its own config.json (stages/models), and each of
its tensors is the first part, along every axis, of the tensor of that name in the full model, whose channels, heads and
hidden units come in order of importance (order.py). Which blocks a shallower subnet keeps is a list.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from stages.models.vlm import ModelConfig, VisionLanguageModel

Layers = Mapping[str, Sequence[int]]  # {prefix of a list of layers: its layers, the most important first}
FACTORS = ("text.lm_head.down.weight", "text.lm_head.up.weight")  # of a low-rank head, in a supernet at full rank
_LAYER = re.compile(r"(text\.layers|vision\.stages\.\d+\.blocks)\.(\d+)\.(.+)")


class Elastic:
    """tensors: of the full model, sorted, and FACTORS where the head can have a lower rank. layers: see Layers."""

    def __init__(self, full: ModelConfig, tensors: Mapping[str, torch.Tensor], layers: Layers):
        self.full, self.tensors, self.layers = full, tensors, layers
        self._skeletons: dict[ModelConfig, VisionLanguageModel] = {}

    def state(self, config: ModelConfig) -> dict[str, torch.Tensor]:
        """The subnet's tensors by name, as views (of those that are cut inside an axis, copies); gradients reach the
        full ones."""
        return {name: self._part(name, config, shape) for name, shape in self._shapes(config).items()}

    def answers(self, config: ModelConfig, function: Callable[[VisionLanguageModel], Any]) -> Any:
        """What `function` returns of the subnet, as a torch model that has these tensors while it runs."""
        call = _Call(self.skeleton(config), function)
        return functional_call(call, {f"model.{name}": part for name, part in self.state(config).items()}, ())

    def skeleton(self, config: ModelConfig) -> VisionLanguageModel:
        """The subnet as stages/models defines it, without weights."""
        if config not in self._skeletons:
            with torch.device("meta"):
                self._skeletons[config] = VisionLanguageModel(config).eval()
        return self._skeletons[config]

    def _shapes(self, config: ModelConfig) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.skeleton(config).state_dict().items()}

    def _part(self, name: str, config: ModelConfig, shape: torch.Size) -> torch.Tensor:
        tensor = self.tensors[self._source(name, config)]
        if tensor.shape == shape:
            return tensor
        whole = tensor.view(factored(name, tuple(tensor.shape), self.full))
        part = factored(name, tuple(shape), config)
        return whole[tuple(slice(count) for count in part)].reshape(shape)

    def _source(self, name: str, config: ModelConfig) -> str:
        """The full model's tensor that the subnet's `name` is cut from."""
        found = _LAYER.fullmatch(name)
        if found is None:
            return name
        prefix, index, rest = found[1], int(found[2]), found[3]
        return f"{prefix}.{kept(self.layers[prefix], depth_of(prefix, config))[index]}.{rest}"


class _Call(nn.Module):
    def __init__(self, model: VisionLanguageModel, function: Callable[[VisionLanguageModel], Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Any:
        return self.function(self.model)


def kept(order: Sequence[int], depth: int) -> list[int]:
    """The `depth` most important layers, in the order in which they run."""
    return sorted(order[:depth])


def depth_of(prefix: str, config: ModelConfig) -> int:
    """How many layers the list `prefix` has."""
    assert config.vision is not None and config.text is not None
    if prefix == "text.layers":
        return config.text.num_hidden_layers
    return config.vision.depths[int(prefix.split(".")[2])]


def factored(name: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """The shape with the axes apart that are cut one by one: queries, keys and values of the tower; the groups of query
    heads that share a key, and the heads of a group."""
    text = config.text
    assert text is not None
    heads = (text.num_key_value_heads, text.num_attention_heads // text.num_key_value_heads, text.head_dim)
    if name.endswith(".qkv.weight"):
        return (3, shape[0] // 3, shape[1])
    if ".q_proj." in name:
        return (*heads, *shape[1:])
    if name.endswith(".o_proj.weight"):
        return (shape[0], *heads)
    return shape
