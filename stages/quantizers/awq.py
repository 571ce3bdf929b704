"""AWQ (Lin et al., arXiv:2306.00978): columns of large inputs are magnified before rounding, and their inputs shrunk.

The inverse goes into what makes the input, a norm's weight or the rows of the matrix before, so that the float model
computes the same function. Scales are powers of two: no bit of a weight is lost on the way, and a norm's float16 weight
stays exact. Which weights have such a producer follows from the modules:

    a decoder layer   input norm -> query, key, value; value -> output; second norm -> gate, up; up -> down
    the decoder       last norm -> output head, where that is not the embedding; its first matrix -> its second, where
                      it has two
    the tower         norm -> query, key, value; value -> projection; depthwise convolution -> expansion

Behind a GELU there is none; such weights, and those of a user's module, are rounded as they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from stages.models.fastvit import AttentionBlock, ConvFeedForward
from stages.models.qwen2 import DecoderLayer, Qwen2
from stages.quantizers.choices import Choice
from stages.quantizers.rtn import round_to_nearest
from stages.quantizers.statistics import StatisticsReader
from stages.schema import Format, Method

_POWERS = [step / 20 for step in range(21)]  # of the inputs' root mean squares: 0 leaves all as it is
_LIMIT = 4  # octaves that a scale may depart from 1: beyond, float16 scales of the producers' rows would lose bits
_ROWS = 4096  # of a weight, evenly spread, that the search measures


@dataclass(frozen=True)
class Scaling:
    """What a tensor is multiplied by: rows (out,) along its first axis, columns (in,) along its second. Powers of
    two; None for 1."""

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None


def equalized(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    statistics: StatisticsReader,
    chosen: Mapping[str, Choice],
) -> dict[str, Scaling]:
    """The scalings of all weights that read an input which can be scaled, and of the tensors that make it, by name.

    One group of weights is in memory at a time. Raises StoreError where calibration did not see a layer.
    """
    scalings: dict[str, Scaling] = {}
    for group in _groups(model):
        if not group.fits(chosen):
            continue
        scales = _searched(group, tensors, statistics, chosen)
        for name in group.consumers:
            scalings[name] = replace(scalings.get(name, Scaling()), columns=scales[group.places])
        for name in group.producers:
            rows = torch.ones(len(tensors[name]))
            rows[group.first : group.first + len(scales)] = 1 / scales
            scalings[name] = replace(scalings.get(name, Scaling()), rows=rows)
    return scalings


def explained(chosen: Mapping[str, Choice], scalings: Mapping[str, Scaling]) -> dict[str, Choice]:
    """The choices, with the reason where AWQ only rounds."""
    reason = "rounded as it is: nothing before it can take the inverse of a scale"
    return {
        name: replace(choice, reason=choice.reason or reason)
        if choice.method is Method.awq and choice.bits and scalings.get(name, Scaling()).columns is None
        else choice
        for name, choice in chosen.items()
    }


class Scaled(Mapping[str, torch.Tensor]):
    """Tensors, float32 where scaled, as the equalized model has them; each is made when asked for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], scalings: Mapping[str, Scaling]):
        self._tensors, self._scalings = tensors, scalings

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        return _scaled(tensor.float(), self._scalings[name]) if name in self._scalings else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class ScaledStatistics(StatisticsReader):
    """The statistics of the equalized model, from those of the model as it was."""

    def __init__(self, statistics: StatisticsReader, scalings: Mapping[str, Scaling]):
        super().__init__(None)
        self._statistics, self._scalings = statistics, scalings

    def has(self, name: str, what: str) -> bool:
        return self._statistics.has(name, what)

    def second_moment(self, name: str) -> torch.Tensor:
        moment = self._statistics.second_moment(name)
        columns = self._scalings.get(name, Scaling()).columns
        return moment if columns is None else moment / columns / columns.unsqueeze(1)

    def fisher(self, name: str) -> torch.Tensor:
        scaling = self._scalings.get(name, Scaling())
        squares = [None if scale is None else scale.square().reciprocal() for scale in (scaling.rows, scaling.columns)]
        return _scaled(self._statistics.fisher(name), Scaling(*squares))


@dataclass(frozen=True)
class _Group:
    """Weights that read one input, whose channels are entries first, first + 1, ... of the producers' first axis.

    places: int64 (in,), the entry behind `first` that each of the consumers' columns reads.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    places: torch.Tensor
    first: int = 0

    def fits(self, chosen: Mapping[str, Choice]) -> bool:
        """Whether a consumer is AWQ's, and no palette is shared by rows or columns that would be scaled apart."""
        known = [chosen[name] for name in (*self.consumers, *self.producers) if name in chosen]
        wanted = any(chosen[name].method is Method.awq and chosen[name].bits for name in self.consumers)
        return wanted and not any(choice.bits and choice.format is Format.palette for choice in known)


def _groups(model: nn.Module) -> Iterator[_Group]:
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, DecoderLayer):
            yield from _of_decoder_layer(prefix, module)
        elif isinstance(module, Qwen2) and not module.config.tie_word_embeddings:
            yield from _of_head(prefix, module)
        elif isinstance(module, AttentionBlock):
            yield from _of_attention_block(prefix, module)
        elif isinstance(module, ConvFeedForward):
            depthwise = (f"{prefix}depthwise.weight", f"{prefix}depthwise.bias")
            yield _Group(depthwise, (f"{prefix}expand.weight",), torch.arange(module.expand.in_channels))


def _of_decoder_layer(prefix: str, layer: DecoderLayer) -> Iterator[_Group]:
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    inputs = tuple(f"{attention}{part}_proj.weight" for part in "qkv")
    yield _Group((f"{prefix}input_layernorm.weight",), inputs, _all(layer.input_layernorm.weight))
    size, shared = layer.self_attn.head_dim, layer.self_attn.o_proj.in_features // layer.self_attn.v_proj.out_features
    heads = torch.arange(layer.self_attn.v_proj.out_features).reshape(-1, size)
    values = (f"{attention}v_proj.weight", f"{attention}v_proj.bias")
    yield _Group(values, (f"{attention}o_proj.weight",), heads.repeat_interleave(shared, 0).flatten())
    halves = (f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight")
    yield _Group((f"{prefix}post_attention_layernorm.weight",), halves, _all(layer.post_attention_layernorm.weight))
    yield _Group((f"{mlp}up_proj.weight",), (f"{mlp}down_proj.weight",), torch.arange(layer.mlp.up_proj.out_features))


def _of_head(prefix: str, text: Qwen2) -> Iterator[_Group]:
    norm = (f"{prefix}norm.weight",)
    if text.config.head_rank is None:
        yield _Group(norm, (f"{prefix}lm_head.weight",), _all(text.norm.weight))
        return
    down, up = f"{prefix}lm_head.down.weight", f"{prefix}lm_head.up.weight"
    yield _Group(norm, (down,), _all(text.norm.weight))
    yield _Group((down,), (up,), torch.arange(text.config.head_rank))


def _of_attention_block(prefix: str, block: AttentionBlock) -> Iterator[_Group]:
    attention, width = f"{prefix}attention.", block.attention.projection.in_features
    channels = torch.arange(width)
    yield _Group((f"{prefix}norm.weight", f"{prefix}norm.bias"), (f"{attention}qkv.weight",), channels)
    yield _Group((f"{attention}qkv.weight",), (f"{attention}projection.weight",), channels, 2 * width)


def _all(vector: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(vector))


def _searched(
    group: _Group, tensors: Mapping[str, torch.Tensor], statistics: StatisticsReader, chosen: Mapping[str, Choice]
) -> torch.Tensor:
    """The scales, float32, with which rounding errs least on the calibration inputs: the sum of e H e^T over all rows
    e of the consumers' errors."""
    sizes = _input_sizes(group, statistics)
    rounded = [(name, chosen[name]) for name in group.consumers if chosen[name].bits]
    weights = {name: tensors[name].float().flatten(1) for name, _ in rounded}
    parts = {name: weight[:: max(1, len(weight) // _ROWS)] for name, weight in weights.items()}
    moments = {name: statistics.second_moment(name) for name, _ in rounded}
    least, best = float("inf"), torch.ones_like(sizes)
    for power in _POWERS:
        scales = _scales(sizes, power)
        columns = scales[group.places]
        error = 0.0
        for name, choice in rounded:
            dense = round_to_nearest(parts[name] * columns, choice.bits, choice.group_size, choice.symmetric).dense()
            missed = parts[name] - dense / columns
            error += float(((missed @ moments[name]) * missed).sum(dtype=torch.float64))
        if error < least:
            least, best = error, scales
    return best


def _input_sizes(group: _Group, statistics: StatisticsReader) -> torch.Tensor:
    """The root mean square of each channel, over all columns that read it, float32."""
    squares = statistics.second_moment(group.consumers[0]).diagonal().double()
    channels = int(group.places.max()) + 1
    total = torch.zeros(channels, dtype=torch.float64).index_add_(0, group.places, squares)
    return (total * channels / len(squares)).sqrt().float()


def _scales(sizes: torch.Tensor, power: float) -> torch.Tensor:
    """sizes^power around 1, as powers of two; a channel that calibration never saw is as the least seen."""
    seen = sizes > 0
    if not seen.any():
        return torch.ones_like(sizes)
    octaves = power * torch.where(seen, sizes, sizes[seen].min()).log2()
    octaves = octaves - (octaves.max() + octaves.min()) / 2
    return octaves.round().clamp(-_LIMIT, _LIMIT).exp2()


def _scaled(tensor: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    if scaling.rows is not None:
        tensor = tensor * scaling.rows.reshape(-1, *[1] * (tensor.ndim - 1))
    if scaling.columns is not None:
        tensor = tensor * scaling.columns.reshape(1, -1, *[1] * (tensor.ndim - 2))
    return tensor
