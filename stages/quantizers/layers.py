"""Which weights can be quantized: matrices that multiply an input, and the table of token embeddings."""

import math
from dataclasses import dataclass

from torch import nn

from stages.models.vlm import VisionLanguageModel
from stages.quantizers.choices import Role


@dataclass(frozen=True)
class Layer:
    """A quantizable weight: (out, in), or (out, in, 1, 1) for a 1x1 convolution. module: None for an embedding."""

    role: Role
    shape: tuple[int, ...]
    module: nn.Linear | nn.Conv2d | None

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])


def quantizable_layers(model: VisionLanguageModel) -> dict[str, Layer]:
    """The quantizable weights by name, sorted; the model may be on the meta device."""
    layers = {}
    for name, module in sorted(model.named_modules()):
        weight = f"{name}.weight"
        if isinstance(module, nn.Embedding):
            layers[weight] = Layer(Role.embeddings, tuple(module.weight.shape), None)
        elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and is_matrix(module)):
            role = Role.tower if name.startswith("vision.") else Role.language
            role = Role.head if "lm_head" in name.split(".") else role
            layers[weight] = Layer(role, tuple(module.weight.shape), module)
    return layers


def spatial_layers(model: VisionLanguageModel) -> dict[str, Layer]:
    """The other convolutions' weights, by name, sorted: (out, in / groups, height, width). They are stored as matrices
    of as many rows; no product with a second moment describes their errors."""
    return {
        f"{name}.weight": Layer(Role.spatial, tuple(module.weight.shape), module)
        for name, module in sorted(model.named_modules())
        if isinstance(module, nn.Conv2d) and not is_matrix(module)
    }


def is_matrix(convolution: nn.Conv2d) -> bool:
    """A pointwise convolution, which is a matrix product at each pixel."""
    return convolution.kernel_size == (1, 1) and convolution.groups == 1 and convolution.stride == (1, 1)


def reason_for_float(model: VisionLanguageModel, name: str) -> str:
    """Why a weight of two dimensions or more that is not quantizable stays float; empty for vectors."""
    module = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, nn.Conv2d) or not name.endswith(".weight"):
        return ""
    rows, columns = module.kernel_size
    return f"a {rows}x{columns} convolution in {module.groups} groups, not a matrix"
