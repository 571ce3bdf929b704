"""coremltools.optimize.torch: palettes, linear quantization and GPTQ. Run by `quantization.child`.

parts are what a Core ML package holds for iOS 18: codes without gaps, lookup tables and scales in float16; `dense` is
what it computes from them. `method`:
  ptp   PostTrainingPalettizer, k-means
  skm   SKMPalettizer, k-means weighted by the Fisher information of the answers' loss (SqueezeLLM, arXiv:2306.07629)
  ptq   PostTrainingQuantizer, rounding to nearest
  gptq  the GPTQ algorithm of LayerwiseCompressor. That takes sequential models only; here the same calls are made for
        the layers of one block after another, each with inputs that come through what is quantized already.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from quantization.packed import Packed, bits_packed
from quantization.subject import Answering, calibration_batches, calibration_together, checkpoint, kinds, loss

META = "_COREML_/weight/"
_FOLDER = tempfile.TemporaryDirectory()
_SENSITIVITY = Path(_FOLDER.name) / "sensitivity.pt"  # the same for every palette of this process


def run(settings: dict[str, Any]) -> Packed:
    """settings: method; bits; palettes: group (0: per tensor), vector, channel_scale; else block (0: per channel) and
    symmetric; gptq: order (activation order), normal_float."""
    model = Answering(checkpoint().model()).eval()
    if settings["method"] in ("ptp", "skm"):
        return _palettes(_palettized(model, settings), settings)
    compressed = _gptq(model, settings) if settings["method"] == "gptq" else _quantized(model, settings)
    return compressed if isinstance(compressed, Packed) else _affine(compressed, settings)


def _palettized(model: Answering, settings: dict[str, Any]) -> nn.Module:
    from coremltools.optimize.torch import palettization

    options: dict[str, Any] = {"n_bits": settings["bits"], "granularity": "per_tensor"}
    if settings.get("group"):
        options |= {"granularity": "per_grouped_channel", "group_size": settings["group"]}
    if settings.get("vector"):
        options["cluster_dim"] = settings["vector"]
    if settings.get("channel_scale"):
        options["enable_per_channel_scale"] = True
    config: dict[str, Any] = {"global_config": options, "module_name_configs": _too_small(model, settings)}
    if settings["method"] == "ptp":
        plain = palettization.PostTrainingPalettizerConfig.from_dict(config)
        return palettization.PostTrainingPalettizer(model, plain).compress()
    batches = calibration_batches()
    weighted = palettization.SKMPalettizerConfig.from_dict(config | {"calibration_nsamples": len(batches)})
    palettizer = palettization.SKMPalettizer(model, weighted)
    if not _SENSITIVITY.is_file():
        palettizer.compute_sensitivity(batches, loss, str(_SENSITIVITY))
    return palettizer.compress(sensitivity_path=str(_SENSITIVITY))


def _too_small(model: nn.Module, settings: dict[str, Any]) -> dict[str, None]:
    """What has fewer vectors than a table has entries, which k-means refuses: it stays float."""
    vector = settings.get("vector", 0)
    return {
        name: None
        for name, module in model.named_modules()
        if vector and isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding)
        if module.weight.numel() < 2 * vector << settings["bits"]
    }


def _palettes(compressed: nn.Module, settings: dict[str, Any]) -> Packed:
    state, result = compressed.state_dict(), Packed()
    bits = settings["bits"]
    for key in [key for key in state if key.endswith(META + "lut")]:
        prefix = key.removesuffix(META + "lut")
        weight = state[f"{prefix}weight"].float()
        table = state[key].float().half().float()
        scale = state.get(f"{prefix}{META}palettization_scale")
        rows = weight.flatten(1)
        if scale is not None:
            scale = scale.float().reshape(-1, 1).half().float()
            rows = rows / state[f"{prefix}{META}palettization_scale"].float().reshape(-1, 1)
        vector = table.shape[-1]
        tables = table.reshape(-1, table.shape[-2], vector)
        group = rows.shape[0] // len(tables)
        dense, codes = torch.empty_like(rows), []
        for index, entries in enumerate(tables):
            part = rows[index * group : (index + 1) * group]
            vectors = part.reshape(-1, vector, part.shape[1]).transpose(1, 2).reshape(-1, vector)
            nearest = torch.cdist(vectors.double(), entries.double()).argmin(1)
            codes.append(nearest.numpy())
            found = entries[nearest].reshape(part.shape[0] // vector, part.shape[1], vector).transpose(1, 2)
            dense[index * group : (index + 1) * group] = found.reshape(part.shape)
        if scale is not None:
            dense = (dense * scale).half().float()
        parts = {"codes": bits_packed(np.concatenate(codes), bits), "lut": table.numpy().astype(np.float16)}
        if scale is not None:
            parts["scale"] = scale.numpy().astype(np.float16)
        worst = float((dense - weight.flatten(1)).abs().max() / weight.abs().max())
        if worst > 2e-3:
            raise ValueError(f"{prefix}weight is no palette: off by {worst:.2g}")
        name = f"{prefix}weight".removeprefix("model.")
        result.add(name, dense.reshape(weight.shape).numpy(), **parts)
        result.native.append(name)
    return result


def _quantized(model: Answering, settings: dict[str, Any]) -> nn.Module:
    from coremltools.optimize.torch import quantization

    scheme = "symmetric" if settings["symmetric"] else "affine"
    sign = "int" if settings["symmetric"] else "uint"
    options: dict[str, Any] = {"weight_dtype": f"{sign}{settings['bits']}", "quantization_scheme": scheme}
    options["granularity"] = "per_block" if settings.get("block") else "per_channel"
    if settings.get("block"):
        options["block_size"] = settings["block"]
    config = quantization.PostTrainingQuantizerConfig.from_dict({"global_config": options})
    return quantization.PostTrainingQuantizer(model, config).compress()


def _affine(compressed: nn.Module, settings: dict[str, Any]) -> Packed:
    """What PostTrainingQuantizer registered: scale (and zero point) of each block of columns."""
    state, result = compressed.state_dict(), Packed()
    for key in [key for key in state if key.endswith(META + "quantization_scale")]:
        prefix = key.removesuffix(META + "quantization_scale")
        name = f"{prefix}weight".removeprefix("model.")
        scale = state[key].float().flatten(1)
        zero = state.get(f"{prefix}{META}zero_point")
        _add_affine(result, name, state[f"{prefix}weight"].float(), scale, zero, settings)
    return result


def _add_affine(
    result: Packed, name: str, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, settings: Any
) -> None:
    rows = weight.flatten(1)
    wide = scale.repeat_interleave(rows.shape[1] // scale.shape[1], 1)
    signed = zero is None
    offset = torch.zeros_like(wide)
    if zero is not None:
        offset = zero.float().flatten(1).repeat_interleave(rows.shape[1] // scale.shape[1], 1)
    codes = (rows / wide + offset).round()
    dense = wide.half().float() * (codes - offset)
    worst = float((dense - rows).abs().max() / rows.abs().max())
    if worst > 2e-3:
        raise ValueError(f"{name} is not on its grid: off by {worst:.2g}")
    bits = settings["bits"]
    shifted = codes + (1 << bits - 1) if signed else codes
    parts = {"codes": bits_packed(shifted.numpy(), bits), "scale": scale.numpy().astype(np.float16)}
    if zero is not None:
        parts["zero_point"] = bits_packed(zero.flatten(1).float().numpy(), bits)
    result.add(name, dense.reshape(weight.shape).numpy(), **parts)
    result.native.append(name)


@torch.no_grad()
def _gptq(model: Answering, settings: dict[str, Any]) -> Packed:
    from coremltools.optimize.torch.layerwise_compression import algorithms

    result = Packed()
    layers = {name: model.model.get_submodule(name.removesuffix(".weight")) for name in kinds(model.model).matrices}
    for block in sorted({_block(name) for name in layers}, key=_order):
        running, hooks = {}, []
        for name in sorted(name for name in layers if _block(name) == block):
            layer = layers[name]
            columns = layer.weight.shape[1]
            size = settings.get("block", 0)
            values: dict[str, Any] = {
                "weight_dtype": f"uint{settings['bits']}",
                "quantization_scheme": "symmetric" if settings["symmetric"] else "affine",
                "granularity": "per_block" if size and columns % size == 0 else "per_channel",
                "use_activation_order_heuristic": settings.get("order", False),
                "enable_normal_float": settings.get("normal_float", False),
                "algorithm": "gptq",
            }
            if values["granularity"] == "per_block":
                values["block_size"] = size
            algorithm = algorithms.GPTQ(layer, algorithms.ModuleGPTQConfig.from_dict(values))
            running[name] = algorithm
            hooks.append(layer.register_forward_hook(lambda _, inp, out, to=algorithm: to.add_batch(inp[0], out)))
        for batch in calibration_together():
            model(batch.pixels, batch.ids)
        for hook in hooks:
            hook.remove()
        for name, algorithm in running.items():
            algorithm._compress_impl()
            scale = torch.cat(algorithm._scale, dim=1).float().flatten(1)
            if settings.get("normal_float"):
                _add_normal_float(result, name, layers[name].weight.detach(), scale, settings["bits"])
            else:
                zero = torch.cat(algorithm._zero_point, dim=1)
                _add_affine(result, name, layers[name].weight.detach(), scale, zero, settings)
            algorithm.cleanup()
    return result


def _add_normal_float(result: Packed, name: str, weight: torch.Tensor, scale: torch.Tensor, bits: int) -> None:
    """One table for all weights, a scale a row: a palette with channel scales in Core ML."""
    from coremltools.optimize.torch.layerwise_compression._quant import _normal_float_palette

    rows, table = weight.flatten(1), _normal_float_palette[bits].half().float()
    codes = ((rows / scale).unsqueeze(-1) - table).abs().argmin(-1)
    dense = table[codes] * scale.half().float()
    parts = {"codes": bits_packed(codes.numpy(), bits), "lut": table.numpy().astype(np.float16)}
    result.add(name, dense.reshape(weight.shape).numpy(), scale=scale.numpy().astype(np.float16), **parts)
    result.native.append(name)


def _block(name: str) -> str:
    """text.layers.N, vision.stages.N.blocks.N, vision.stages.N.downsample, projector, ..."""
    found = re.match(r"text\.layers\.\d+|vision\.stages\.\d+\.(blocks\.\d+|\w+)|\w+(\.\w+)?", name)
    assert found
    return "projector" if name.startswith("projector") else found.group()


def _order(block: str) -> tuple[int, str]:
    """In which a pass meets the blocks."""
    places = ("vision.patch", "vision.stages", "vision.expansion", "projector", "text.layers")
    stage = next(index for index, start in enumerate(places) if block.startswith(start))
    return stage, block.replace("downsample", "a")
