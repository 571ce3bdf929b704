"""Static ranges of activations in torch: the inputs of some products, rounded as a runtime rounds them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

Ranges = Mapping[str, Mapping[str, float]]


def attach(model: nn.Module, ranges: Ranges) -> None:
    """Let the model round the inputs of these weights' modules, as a runtime does."""
    for name, grid in ranges.items():
        scale, zero_point = np.float32(grid["scale"]).item(), int(grid["zero_point"])

        def rounded(module: Any, inputs: tuple[Any, ...], scale: float = scale, zero: int = zero_point) -> Any:
            values = torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, 0, 255)
            return (values, *inputs[1:])

        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(rounded)
