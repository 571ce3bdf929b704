"""A whole model through the methods: one weight at a time, read from the checkpoint and written to the store."""

from pathlib import Path

import numpy as np
import torch

from pipelines.errors import StageError
from stages.artifacts import Calibration, Checkpoint
from stages.quantizers.choices import Choice, Role, choices
from stages.quantizers.gptq import gptq_affine, gptq_palette
from stages.quantizers.layers import Layer, quantizable_layers, reason_for_float
from stages.quantizers.palettize import Palette, palettize
from stages.quantizers.rtn import Affine, round_to_nearest
from stages.quantizers.statistics import Report, StatisticsReader
from stages.quantizers.store import StoreWriter, TensorFormat
from stages.schema import Format, Importance, Method, QuantizeConfig

_FLOAT16_LIMIT = 65504.0
# The least share of the mean that a weight counts, so that no weight is free to become anything.
_IMPORTANCE_FLOOR = 0.01


def quantize_weights(
    checkpoint: Checkpoint, calibration: Calibration | None, config: QuantizeConfig, out: Path, progress: Report
) -> dict[str, TensorFormat]:
    """Write the store into folder out and return its formats, having checked that each weight got what was chosen.

    calibration: None where no weight's method asks for statistics. Raises ConfigError, StageError or StoreError; then
    no store is left.
    """
    with torch.device("meta"):
        model = checkpoint.config().build()
    layers = quantizable_layers(model)
    chosen = choices(config, {name: (layer.role, layer.shape) for name, layer in layers.items()})
    statistics = StatisticsReader(calibration.statistics if calibration else None)
    with checkpoint.tensors() as tensors, StoreWriter(out) as writer:
        for index, name in enumerate(sorted(tensors)):
            progress(index, len(tensors), name)
            choice = chosen.get(name)
            if choice is None or not choice.bits:
                _add_float(writer, name, tensors[name], "" if choice else reason_for_float(model, name))
            else:
                weight = tensors[name].float().flatten(1)
                _add(
                    writer,
                    name,
                    layers[name],
                    choice,
                    quantized(name, weight, layers[name], choice, statistics, config),
                )
        _check_coverage(chosen, writer.formats())
    return writer.formats()


def quantized(
    name: str, weight: torch.Tensor, layer: Layer, choice: Choice, statistics: StatisticsReader, config: QuantizeConfig
) -> Affine | Palette:
    """One weight, float32 (out, in), by its method."""
    palette = choice.format is Format.palette
    importance = _importance(name, weight, layer, statistics, config) if palette else None
    if choice.method is Method.gptq and palette:
        return gptq_palette(
            weight,
            statistics.second_moment(name),
            choice.bits,
            choice.group_size,
            importance,
            damping=config.damping,
            activation_order=config.activation_order,
        )
    if choice.method is Method.gptq:
        return gptq_affine(
            weight,
            statistics.second_moment(name),
            choice.bits,
            choice.group_size,
            choice.symmetric,
            damping=config.damping,
            activation_order=config.activation_order,
            search=config.scale_search,
        )
    if palette:
        return palettize(weight, choice.bits, choice.group_size, importance)
    search = config.scale_search and choice.bits < 8
    diagonal = statistics.second_moment(name).diagonal() if search and layer.role is not Role.embeddings else None
    return round_to_nearest(
        weight, choice.bits, choice.group_size, choice.symmetric, search=search, importance=diagonal
    )


def _importance(
    name: str, weight: torch.Tensor, layer: Layer, statistics: StatisticsReader, config: QuantizeConfig
) -> torch.Tensor | None:
    """(out, in), mean near 1; None where all weights count the same."""
    if config.importance is Importance.uniform:
        return None
    if config.importance is Importance.fisher or layer.role is Role.embeddings:
        values = statistics.fisher(name).flatten(1)
    else:
        values = statistics.second_moment(name).diagonal().expand(weight.shape)
    mean = float(values.double().mean())
    return values / mean + _IMPORTANCE_FLOOR if mean > 0 else None


def _add(writer: StoreWriter, name: str, layer: Layer, choice: Choice, result: Affine | Palette) -> None:
    if isinstance(result, Palette):
        codes, palette = result.arrays()
        group_size = 0 if result.group_size == layer.shape[0] else result.group_size
        writer.add_palette(name, layer.shape, choice.bits, codes, palette, group_size, choice.reason)
        return
    codes, scales, zero_points = result.arrays()
    kept = None if choice.symmetric else zero_points
    writer.add_affine(name, layer.shape, choice.bits, codes, scales, kept, choice.reason)


def _add_float(writer: StoreWriter, name: str, tensor: torch.Tensor, reason: str) -> None:
    array = tensor.float().numpy()
    if not tensor.is_floating_point():
        if not torch.equal(tensor.float().to(tensor.dtype), tensor):
            raise StageError(f"'{name}' holds integers beyond 16,777,216", hint="Make it a buffer that is not saved.")
        writer.add_float(name, array, "integers")
    elif float(np.abs(array).max(initial=0)) > _FLOAT16_LIMIT:
        writer.add_float(name, array, f"values above float16's {_FLOAT16_LIMIT:,.0f}")
    else:
        writer.add_float(name, array.astype(np.float16), reason)


def _check_coverage(chosen: dict[str, Choice], formats: dict[str, TensorFormat]) -> None:
    """Every weight has the bits that were chosen for it; a method that skips one must not go unseen."""
    for name, choice in chosen.items():
        form = formats.get(name)
        found = "nothing" if form is None else f"{form.format} {form.bits}" if form.bits else "float"
        expected = f"{choice.format.value} {choice.bits}" if choice.bits else "float"
        if found != expected:
            raise StageError(f"weight '{name}' was to become {expected} bits and is stored as {found}")
