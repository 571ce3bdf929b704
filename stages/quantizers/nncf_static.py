"""Static ranges of activations, by nncf.quantize: what an NPU rounds the inputs of the tower's products to, 8 bits.

nncf.quantize decides which products are quantized and what range each input has (per tensor, with a zero point); the
ranges go into activations.json, and whoever runs the model rounds x to

    scale * (clamp(round(x / scale) + zero_point, 0, 255) - zero_point)

The weights are stored as everywhere else.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from pipelines.errors import StageError
from stages.artifacts import Calibration, Checkpoint
from stages.data.image import preprocess
from stages.models.vlm import Encoder
from stages.quantizers.nncf_session import quiet_nncf
from stages.quantizers.sequences import samples_of
from stages.schema import CalibrateConfig, Draw

ACTIVATIONS = "activations.json"
SETTINGS = "settings.json"  # of the calibration
_IMAGES = 32
_NEAR = 1e-2  # of a step: what still lies on a grid


def static_ranges(checkpoint: Checkpoint, calibration: Calibration) -> dict[str, dict[str, float]]:
    """{name of a weight: {"bits": 8, "scale", "zero_point"}} of its input, over the calibration's images.

    Raises StageError where there are no images, or no tower.
    """
    if checkpoint.config().vision is None:
        raise StageError(
            "quantize.activations is of a tower, and the model has none", hint="Set quantize.activations=0."
        )
    images = _images(checkpoint, calibration)
    if not images:
        raise StageError("the calibration holds no images", hint="Set calibrate.samples, or calibrate on images too.")
    encoder = Encoder(checkpoint.model()).eval()
    with quiet_nncf() as nncf, torch.compiler.set_stance("force_eager"):
        from nncf.torch.quantization.extensions import QuantizedFunctionsCPU, ReferenceQuantizedFunctions

        # NNCF would compile C++ to round with; it has the same in torch, for machines without a compiler.
        QuantizedFunctionsCPU._loaded_namespace = ReferenceQuantizedFunctions
        tensor = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)
        made = nncf.quantize(
            encoder,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.NPU,
            subset_size=len(images),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_quantization_params=tensor, disable_bias_correction=True
            ),
        )
        return _read(made, images[0])


def _images(checkpoint: Checkpoint, calibration: Calibration) -> list[torch.Tensor]:
    """The first different images of the calibration, (1, 3, S, S) each, drawn again as it drew them."""
    settings = calibration.read_json(SETTINGS)
    config, preprocessing = CalibrateConfig(**{**settings, "draw": Draw(settings["draw"])}), checkpoint.preprocessing()
    images: dict[bytes, torch.Tensor] = {}
    for sample in samples_of(checkpoint, config):
        if sample.image is not None and len(images) < _IMAGES:
            pixels = preprocess(sample.image, preprocessing)
            images.setdefault(sha256(pixels.tobytes()).digest(), torch.from_numpy(pixels))
    return list(images.values())


@torch.no_grad()
def _read(model: nn.Module, image: torch.Tensor) -> dict[str, dict[str, float]]:
    """The grid on which each convolution's and linear's input lies: of the quantizer that last gave such values.

    Hooks only note what passes by: NNCF sees every operation inside of the model, and would quantize theirs too.
    """
    weights = 0
    passed: list[dict[str, float]] = []
    entered: list[tuple[str, torch.Tensor, int]] = []
    hooks = []
    for name, module in model.named_modules():
        if hasattr(module, "get_parameters_for_torch_fq"):
            low, _, scale, zero_point = module.get_parameters_for_torch_fq()
            weights += scale.numel() > 1  # those have a scale a row
            if scale.numel() == 1:
                grid = {"bits": 8, "scale": float(scale), "zero_point": int(zero_point) - low}
                hooks.append(module.register_forward_hook(lambda *_, grid=grid: passed.append(grid)))
        elif isinstance(module, nn.Conv2d | nn.Linear):

            def enters(module: Any, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                entered.append((f"{name}.weight", inputs[0], len(passed)))

            hooks.append(module.register_forward_pre_hook(enters))
    model(image)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, values, count in entered:
        fitting = [grid for grid in reversed(passed[:count]) if _lies_on(values, grid)]
        if fitting:
            found[name] = fitting[0]
    if len(found) < weights:
        raise StageError(
            f"NNCF quantized {weights} products of the tower; the ranges of {len(found)} inputs were found"
        )
    return dict(sorted(found.items()))


def _lies_on(values: torch.Tensor, grid: Mapping[str, float]) -> bool:
    codes = values.double() / grid["scale"] + grid["zero_point"]
    inside = float(codes.min()) > -0.5 and float(codes.max()) < 255.5
    return inside and float((codes - codes.round()).abs().max()) < _NEAR
