"""One weight by its method: each in a file of its own, with the paper that it follows."""

from dataclasses import replace

import torch

from stages.quantizers.choices import Choice, Role
from stages.quantizers.gptq import gptq_affine, gptq_palette
from stages.quantizers.hqq import hqq
from stages.quantizers.layers import Layer
from stages.quantizers.nncf_weights import nncf_weights
from stages.quantizers.palettize import palettize
from stages.quantizers.prune import prune
from stages.quantizers.results import Affine, Float, Palette
from stages.quantizers.rtn import round_to_nearest
from stages.quantizers.statistics import StatisticsReader
from stages.schema import Format, Importance, Method, QuantizeConfig

# The least share of the mean that a weight counts, so that no weight is free to become anything.
_IMPORTANCE_FLOOR = 0.01
Result = Float | Affine | Palette


def quantized(
    name: str, weight: torch.Tensor, layer: Layer, choice: Choice, statistics: StatisticsReader, config: QuantizeConfig
) -> Result:
    """weight: float32 (out, in), as `choice` says; with bits or zeros, or both."""
    mask = None
    if choice.sparse:
        weight, mask = prune(
            weight, statistics.second_moment(name), choice.sparsity, choice.sparsity_pattern, damping=config.damping
        )
    if not choice.bits:
        return Float(weight, mask)
    make = _palette if choice.format is Format.palette else _affine
    result = make(name, weight, layer, choice, statistics, config, mask)
    return result if mask is None else replace(result, mask=mask)


def _palette(
    name: str,
    weight: torch.Tensor,
    layer: Layer,
    choice: Choice,
    statistics: StatisticsReader,
    config: QuantizeConfig,
    mask: torch.Tensor | None,
) -> Palette:
    importance = _importance(name, weight, layer, statistics, config)
    if mask is not None:
        importance = mask * (1.0 if importance is None else importance)
    if choice.method is Method.gptq:
        return gptq_palette(
            weight,
            statistics.second_moment(name),
            choice.bits,
            choice.group_size,
            importance,
            damping=config.damping,
            activation_order=config.activation_order,
            refinement=config.refinement,
            mask=mask,
            channel_scale=choice.channel_scale,
            vector=choice.vector,
        )
    return palettize(
        weight,
        choice.bits,
        choice.group_size,
        importance,
        channel_scale=choice.channel_scale,
        vector=choice.vector,
    )


def _affine(
    name: str,
    weight: torch.Tensor,
    layer: Layer,
    choice: Choice,
    statistics: StatisticsReader,
    config: QuantizeConfig,
    mask: torch.Tensor | None,
) -> Affine:
    bits, size, symmetric = choice.bits, choice.group_size, choice.symmetric
    if choice.method is Method.gptq:
        return gptq_affine(
            weight,
            statistics.second_moment(name),
            bits,
            size,
            symmetric,
            damping=config.damping,
            activation_order=config.activation_order,
            search=config.scale_search,
            refinement=config.refinement,
            mask=mask,
        )
    if choice.method is Method.hqq:
        return hqq(weight, bits, size, symmetric)
    if choice.method is Method.nncf:
        return nncf_weights(weight, bits, size, symmetric)
    search = config.scale_search and bits < 8
    measured = search and layer.role not in (Role.embeddings, Role.spatial)
    importance = statistics.second_moment(name).diagonal() if measured else None
    return round_to_nearest(weight, bits, size, symmetric, search=search, importance=importance)


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
