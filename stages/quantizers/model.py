"""A whole model through the methods: one weight at a time, read from the checkpoint and written to the store."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.artifacts import Allocation, Calibration, Checkpoint
from stages.quantizers import qat
from stages.quantizers.awq import Scaled, ScaledStatistics, equalized, explained
from stages.quantizers.choices import Choice, Role, choices
from stages.quantizers.clock import Clock
from stages.quantizers.coverage import check_coverage, report_coverage
from stages.quantizers.layers import Layer, quantizable_layers, reason_for_float, spatial_layers
from stages.quantizers.methods import Result, quantized
from stages.quantizers.results import Float, Palette
from stages.quantizers.resume import Finished
from stages.quantizers.statistics import StatisticsReader
from stages.quantizers.store import StoreWriter, TensorFormat
from stages.schema import Method, QuantizeConfig

_FLOAT16_LIMIT = 65504.0


def quantize_weights(
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    allocation: Allocation | None,
    config: QuantizeConfig,
    work: Workspace,
) -> dict[str, TensorFormat]:
    """Write the store into work.out and return its formats, having checked that each weight got what was chosen.

    calibration: None where no weight's method asks for statistics; allocation: where formats are chosen by measurement.
    Killed at any moment, it goes on behind the last finished weight. Raises ConfigError, StageError or StoreError; then
    no store is left.
    """
    with torch.device("meta"):
        model = checkpoint.config().build()
    layers = {**quantizable_layers(model), **spatial_layers(model)}
    allocated = allocation.choices() if allocation else None
    chosen = choices(config, {name: (layer.role, layer.shape) for name, layer in layers.items()}, allocated)
    statistics = StatisticsReader(calibration.statistics if calibration else None)
    with checkpoint.tensors() as stored, StoreWriter(work.out) as writer:
        tensors: Mapping[str, torch.Tensor] = stored
        if any(choice.method is Method.awq and choice.bits for choice in chosen.values()):
            scalings = equalized(model, stored, statistics, chosen)
            tensors, statistics = Scaled(stored, scalings), ScaledStatistics(statistics, scalings)
            chosen = explained(chosen, scalings)
        results = _results(tensors, layers, chosen, statistics, config, work)
        if config.method is Method.qat and config.training:
            trained, others = qat.train(checkpoint, dict(results), config.training, work, tensors=tensors)
            results, tensors = iter(sorted(trained.items())), {**tensors, **others}
        floats = set(tensors)
        for name, result in results:
            add_result(writer, name, layers[name], chosen[name], result)
            floats.discard(name)
        for name in sorted(floats):
            _add_float(writer, name, tensors[name], reason_for_float(model, name))
        check_coverage(chosen, writer.formats())
    report_coverage(writer.formats(), work)
    return writer.formats()


def _results(
    tensors: Mapping[str, torch.Tensor],
    layers: Mapping[str, Layer],
    chosen: Mapping[str, Choice],
    statistics: StatisticsReader,
    config: QuantizeConfig,
    work: Workspace,
) -> Iterator[tuple[str, Result]]:
    """Each weight that does not stay as it is, by name, sorted."""
    names = [name for name in sorted(tensors) if name in chosen and (chosen[name].bits or chosen[name].sparse)]
    finished, clock = Finished(work.scratch / "finished"), Clock(work.progress)
    clock.total = sum(_cost(layers[name]) for name in names)
    for name in names:
        result = finished.get(name)
        if result is None:
            weight = tensors[name].float().flatten(1)
            _check_finite(name, weight)
            result = quantized(name, weight, layers[name], chosen[name], statistics, config)
            finished.keep(name, result)
            clock.add(_cost(layers[name]), name)
        else:
            clock.skip(_cost(layers[name]))
        yield name, result


def _cost(layer: Layer) -> float:
    """Of quantizing it, about: each weight's error meets those of its row, but for an embedding's."""
    return math.prod(layer.shape) * (64.0 if layer.role is Role.embeddings else layer.columns)


def add_result(writer: StoreWriter, name: str, layer: Layer, choice: Choice, result: Result) -> None:
    """Store a weight that `choice` made, under that name."""
    mask = {} if result.mask is None else {"mask": result.mask.numpy()}
    if isinstance(result, Float):
        weight = result.weight.reshape(layer.shape).numpy().astype(np.float16)
        writer.add_float(name, weight, choice.reason, **mask)
        return
    if isinstance(result, Palette):
        codes, palette = result.arrays()
        group_size = 0 if result.group_size == layer.shape[0] else result.group_size
        if result.channel_scales is not None:
            mask["channel_scales"] = result.channel_scales.numpy()
        writer.add_palette(name, layer.shape, choice.bits, codes, palette, group_size, choice.reason, **mask)
        return
    codes, scales, zero_points = result.arrays()
    kept = None if choice.symmetric else zero_points
    writer.add_affine(name, layer.shape, choice.bits, codes, scales, kept, choice.reason, **mask)


def _add_float(writer: StoreWriter, name: str, tensor: torch.Tensor, reason: str) -> None:
    array = tensor.float().numpy()
    _check_finite(name, tensor)
    if not tensor.is_floating_point():
        if not torch.equal(tensor.float().to(tensor.dtype), tensor):
            raise StageError(f"'{name}' holds integers beyond 16,777,216", hint="Make it a buffer that is not saved.")
        writer.add_float(name, array, "integers")
    elif float(np.abs(array).max(initial=0)) > _FLOAT16_LIMIT:
        writer.add_float(name, array, f"values above float16's {_FLOAT16_LIMIT:,.0f}")
    else:
        writer.add_float(name, array.astype(np.float16), reason)


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise StageError(
            f"'{name}' holds NaN or infinite values", hint="The checkpoint is unsound: `load` looks for such; run it."
        )
