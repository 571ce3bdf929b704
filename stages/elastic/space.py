"""The space of architectures: a model and what each of its dimensions can shrink to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm, prod
from random import Random
from typing import Any

from pipelines.errors import ConfigError, StageError
from stages.models.vlm import ModelConfig
from stages.schema.search import SpaceConfig

Architecture = Mapping[str, int]  # {dimension: its value}; JSON can hold it


@dataclass(frozen=True)
class Dimension:
    """values: from the largest model's, its own, down: of a stride, up."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """Every subnet of `full`. Dimensions with a single value are left out: they cannot be searched."""

    full: ModelConfig
    dimensions: tuple[Dimension, ...]

    @classmethod
    def of(cls, full: ModelConfig, config: SpaceConfig) -> "Space":
        """Raises StageError for a model without a tower, ConfigError where nothing can shrink."""
        if full.vision is None or full.text is None:
            raise StageError(
                "a search needs a vision-language model, with a tower and a decoder; this one has "
                + ("no tower" if full.text else "neither: it is a module of your own"),
                hint="Set search=off.",
            )
        dimensions = [Dimension(name, values) for name, values in _values(full, config) if len(values) > 1]
        if not dimensions:
            raise ConfigError(
                "supernet.space has no dimension that could shrink", hint="conf/supernet/default.yaml has a space"
            )
        return cls(full, tuple(dimensions))

    @property
    def largest(self) -> dict[str, int]:
        return {each.name: each.values[0] for each in self.dimensions}

    @property
    def smallest(self) -> dict[str, int]:
        return {each.name: each.values[-1] for each in self.dimensions}

    @property
    def size(self) -> int:
        return prod(len(each.values) for each in self.dimensions)

    def drawn(self, random: Random) -> dict[str, int]:
        """Each dimension drawn for itself, each value as likely."""
        return {each.name: random.choice(each.values) for each in self.dimensions}

    def uniform(self, share: float) -> dict[str, int]:
        """All dimensions at the same share of the way from the smallest (0) to the largest (1)."""
        return {each.name: each.values[round((1 - share) * (len(each.values) - 1))] for each in self.dimensions}

    def configured(self, architecture: Architecture) -> ModelConfig:
        """The plain model of an architecture; a dimension that it does not name keeps the full size."""
        vision, text = self.full.vision, self.full.text
        assert vision is not None and text is not None
        found = dict(architecture)
        share = found.get("tower_width", vision.widths[-1]) / vision.widths[-1]
        widths = tuple(round(width * share) for width in vision.widths)
        depths = tuple(found.get(f"tower_depth_{index}", depth) for index, depth in enumerate(vision.depths))
        ratio = found.get("tower_ffn", round(vision.mlp_ratio * vision.widths[-1])) / vision.widths[-1]
        strides = list(vision.strides)
        strides[-1] = (strides[-1][0], found.get("tower_stride", strides[-1][1]))
        groups = found.get("kv_heads", text.num_key_value_heads)
        rank = found.get("head_rank")
        each = found.get("group_heads", text.num_attention_heads // text.num_key_value_heads)
        return replace(
            self.full,
            vision=replace(
                vision,
                image_size=found.get("image_size", vision.image_size),
                depths=depths,
                widths=widths,
                strides=tuple(strides),
                mlp_ratio=int(ratio) if ratio == int(ratio) else ratio,
            ),
            text=replace(
                text,
                num_hidden_layers=found.get("depth", text.num_hidden_layers),
                intermediate_size=found.get("ffn", text.intermediate_size),
                num_key_value_heads=groups,
                num_attention_heads=groups * each,
                head_dim=text.head_dim,
                head_rank=text.head_rank if rank in (None, text.hidden_size) else rank,
            ),
        )

    def neighbours(self, architecture: Architecture) -> Iterator[dict[str, int]]:
        """One step down in one dimension."""
        for each in self.dimensions:
            place = each.values.index(architecture[each.name])
            if place + 1 < len(each.values):
                yield {**architecture, each.name: each.values[place + 1]}


def _values(full: ModelConfig, config: SpaceConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(dimension, its values), in an order that never changes: the searches' random draws depend on it."""
    vision, text = full.vision, full.text
    assert vision is not None and text is not None
    yield "depth", _shares(text.num_hidden_layers, config.decoder_depth)
    yield "ffn", _shares(text.intermediate_size, config.decoder_ffn, config.multiple)
    yield "kv_heads", _shares(text.num_key_value_heads, config.kv_heads)
    yield "group_heads", _shares(text.num_attention_heads // text.num_key_value_heads, config.group_heads)
    if not text.tie_word_embeddings and text.head_rank is None:
        yield "head_rank", _shares(text.hidden_size, config.head_rank, config.multiple)
    for index, depth in enumerate(vision.depths):
        yield f"tower_depth_{index}", _shares(depth, config.tower_depth)
    yield "tower_width", _widths(vision, config)
    yield "tower_ffn", _ratios(vision, config)
    strides = _strides(vision, config)
    yield "image_size", _shares(vision.image_size, config.resolution, _pixels(vision, strides[-1]))
    yield "tower_stride", strides


def _shares(full: int, shares: list[float], multiple: int = 1) -> tuple[int, ...]:
    """The nearest multiples to these shares, at least one; the full size as it is."""
    near = [full if share == 1 else max(multiple, multiple * round(full * share / multiple)) for share in shares]
    return tuple(sorted({full, *(each for each in near if each <= full)}, reverse=True))


def _widths(vision: Any, config: SpaceConfig) -> tuple[int, ...]:
    """Of the last stage; the others keep their proportion, so that each share must leave whole widths everywhere, also
    inside the feed-forward parts, heads whole where a stage attends, and 16 channels for each of
    squeeze-and-excitation's."""
    last = vision.widths[-1]
    attends = [width for width, mixer in zip(vision.widths, vision.mixers, strict=True) if mixer == "attention"]

    def fits(share: float) -> bool:
        whole = all(_is_whole(width * share * ratio) for width in vision.widths for ratio in (1, vision.mlp_ratio))
        heads = all(_is_whole(width * share / vision.head_dim) for width in attends)
        return whole and heads and _is_whole(last * share * vision.expansion / 16)

    return tuple(sorted({last, *(round(last * share) for share in config.tower_width if fits(share))}, reverse=True))


def _ratios(vision: Any, config: SpaceConfig) -> tuple[int, ...]:
    """Hidden channels of the last stage's feed-forward parts, at ratios of half steps that leave whole numbers in every
    stage at every width."""
    last = vision.widths[-1]
    narrow = [width * each / last for width in vision.widths for each in _widths(vision, config)]
    found = {round(vision.mlp_ratio * last)}
    for share in config.tower_ffn:
        ratio = max(0.5, round(2 * vision.mlp_ratio * share) / 2)
        if share < 1 and ratio < vision.mlp_ratio and all(_is_whole(width * ratio) for width in narrow):
            found.add(round(ratio * last))
    return tuple(sorted(found, reverse=True))


def _strides(vision: Any, config: SpaceConfig) -> tuple[int, ...]:
    """Of the last stage's columns, which it has a whole number of at the full image."""
    own = vision.strides[-1][1]
    found = {own, *(own * round(1 / share) for share in config.visual_tokens)}
    return tuple(sorted(each for each in found if each == own or vision.image_size % _pixels(vision, each) == 0))


def _pixels(vision: Any, columns: int) -> int:
    """What the side of an image must be a multiple of: the stem's stride of 4 times those of the stages, in rows and in
    columns, of which the last stage's are `columns`."""
    strides = [*vision.strides[1:-1], (vision.strides[-1][0], columns)]
    return lcm(*(4 * prod(each) for each in zip(*strides, strict=True)))


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-9
