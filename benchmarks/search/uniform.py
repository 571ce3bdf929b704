"""What a search must beat: all dimensions, or all of some kind, at one share of their full size."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from pipelines.errors import ConfigError
from stages.elastic.space import Space
from stages.models.vlm import ModelConfig
from stages.schema.search import SpaceConfig
from stages.searching.trials import Cost

STEPS = 400  # shares that are tried, from 1 down
TOKENS = ("resolution", "visual_tokens")
WIDTHS = ("decoder_ffn", "tower_ffn", "head_rank")


@dataclass(frozen=True)
class Design:
    """keeps: dimensions (fields of SpaceConfig) that stay whole; None: all but WIDTHS."""

    label: str
    keeps: tuple[str, ...] | None


DESIGNS = (
    Design("uniform scaling, everything", ()),
    Design("uniform scaling, all that has weights", TOKENS),
    Design("uniform width", None),
)


def largest(
    design: Design,
    full: ModelConfig,
    shipped: SpaceConfig,
    cost_of: Callable[[dict[str, int]], Cost],
    fits: Callable[[Cost], bool],
) -> tuple[float, dict[str, int]] | None:
    """(share, architecture) of the largest that fits: each dimension at the value of its own that is nearest to the
    share; None where even the smallest does not fit. shipped: dimensions that it does not let shrink stay whole."""
    for step in range(STEPS - 1, 0, -1):
        share = step / STEPS
        try:
            architecture = Space.of(full, _space(design, full, shipped, share)).smallest
        except ConfigError:  # so near to 1 that nothing is smaller yet
            continue
        if fits(cost_of(architecture)):
            return share, architecture
    return None


def _space(design: Design, full: ModelConfig, shipped: SpaceConfig, share: float) -> SpaceConfig:
    """The full model and the one at that share, as finely as each dimension goes: layers and heads one by one, widths
    of the decoder and images by the multiples that they must be of, tower widths by whole heads, its feed-forward parts
    by half steps; half of the visual tokens below 0.75."""
    vision = full.vision
    assert vision is not None
    heads = max(1, round(vision.widths[-1] * share / vision.head_dim))
    own = {
        "tower_width": heads * vision.head_dim / vision.widths[-1],
        "visual_tokens": 1.0 if share >= 0.75 else 0.5,
    }
    shares: dict[str, Any] = {"multiple": shipped.multiple}
    for name in (each.name for each in fields(SpaceConfig) if each.name != "multiple"):
        kept = name not in WIDTHS if design.keeps is None else name in design.keeps
        shrinks = not kept and min(getattr(shipped, name)) < 1
        shares[name] = [own.get(name, share) if shrinks else 1.0]
    return SpaceConfig(**shares)
