"""In what order a model's channels, heads, hidden units and layers may be given up: the least important last.

The importance of a unit is the square of what the loss would change, to first order, were the unit's weights scaled:
the sum of weight x gradient over what reads it (arXiv:1906.10771), summed over batches. A permutation that is applied
wherever a channel is written and read changes nothing of what the model computes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from stages.models.vlm import ModelConfig


@dataclass(frozen=True)
class Axis:
    """Part of an axis of the tensor `name`, seen as `shape`, whose axis `axis` holds the units; unit u is found at
    u * each .. u * each + each - 1. read: whether the tensor reads the units, rather than making them."""

    name: str
    shape: tuple[int, ...]
    axis: int
    each: int = 1
    read: bool = False


@dataclass(frozen=True)
class Units:
    """`count` exchangeable units, and every axis that they lie on."""

    name: str
    count: int
    axes: tuple[Axis, ...]


def units(full: ModelConfig) -> Iterator[Units]:
    """All sets of exchangeable units of a model."""
    yield from _tower_units(full)
    yield from _decoder_units(full)


def _tower_units(full: ModelConfig) -> Iterator[Units]:
    vision = full.vision
    assert vision is not None
    last = len(vision.widths) - 1
    for stage, (width, depth, mixer) in enumerate(zip(vision.widths, vision.depths, vision.mixers, strict=True)):
        at, hidden = f"vision.stages.{stage}", round(width * vision.mlp_ratio)
        made = [Axis("vision.patch_embed.2.weight", (width, vision.stem_width, 1, 1), 0)] if not stage else []
        made += [Axis("vision.patch_embed.2.bias", (width,), 0)] if not stage else []
        axes = made or [
            Axis(f"{at}.downsample.pointwise.weight", (width, width, 1, 1), 0),
            Axis(f"{at}.downsample.pointwise.bias", (width,), 0),
        ]
        if mixer == "attention":
            axes += [Axis(f"{at}.position.weight", (width, 1, 7, 7), 0), Axis(f"{at}.position.bias", (width,), 0)]
        for block in range(depth):
            on = f"{at}.blocks.{block}"
            kernel = vision.ffn_kernel
            if mixer == "attention":
                axes += [Axis(f"{on}.norm.{each}", (width,), 0) for each in ("weight", "bias")]
                axes.append(Axis(f"{on}.attention.qkv.weight", (3 * width, width), 1, read=True))
                axes += [Axis(f"{on}.attention.projection.weight", (width, width), 0)]
                axes += [Axis(f"{on}.attention.projection.bias", (width,), 0)]
                heads = (width // vision.head_dim, vision.head_dim)
                yield Units(
                    f"{on}.attention",
                    heads[0],
                    (
                        Axis(f"{on}.attention.qkv.weight", (3, *heads, width), 1),
                        Axis(f"{on}.attention.projection.weight", (width, *heads), 1, read=True),
                    ),
                )
            else:
                axes += [Axis(f"{on}.mixer.weight", (width, 1, 3, 3), 0), Axis(f"{on}.mixer.bias", (width,), 0)]
            axes += [
                Axis(f"{on}.ffn.depthwise.weight", (width, 1, kernel, kernel), 0),
                Axis(f"{on}.ffn.depthwise.bias", (width,), 0),
                Axis(f"{on}.ffn.expand.weight", (hidden, width, 1, 1), 1, read=True),
                Axis(f"{on}.ffn.contract.weight", (width, hidden, 1, 1), 0),
                Axis(f"{on}.ffn.contract.bias", (width,), 0),
            ]
            yield Units(
                f"{on}.ffn",
                hidden,
                (
                    Axis(f"{on}.ffn.expand.weight", (hidden, width, 1, 1), 0),
                    Axis(f"{on}.ffn.expand.bias", (hidden,), 0),
                    Axis(f"{on}.ffn.contract.weight", (width, hidden, 1, 1), 1, read=True),
                ),
            )
        yield Units(at, width, (*axes, *(_expansion(full) if stage == last else _downsample(full, stage + 1))))
    output = vision.output_width
    squeezed = output // 16
    yield Units(
        "vision.expansion",
        squeezed,
        (
            Axis("vision.expansion.squeeze.weight", (squeezed, output, 1, 1), 0),
            Axis("vision.expansion.squeeze.bias", (squeezed,), 0),
            Axis("vision.expansion.excite.weight", (output, squeezed, 1, 1), 1, read=True),
        ),
    )


def _downsample(full: ModelConfig, stage: int) -> list[Axis]:
    """The next stage's depthwise convolution gives each channel some outputs, which move with it."""
    vision = full.vision
    assert vision is not None
    width, kernel = vision.widths[stage], vision.patch_kernel
    each, on = width // vision.widths[stage - 1], f"vision.stages.{stage}.downsample"
    return [
        Axis(f"{on}.depthwise.weight", (width, 1, kernel, kernel), 0, each),
        Axis(f"{on}.depthwise.bias", (width,), 0, each),
        Axis(f"{on}.pointwise.weight", (width, width, 1, 1), 1, each, read=True),
    ]


def _expansion(full: ModelConfig) -> list[Axis]:
    vision, text = full.vision, full.text
    assert vision is not None and text is not None
    output, each, on = vision.output_width, vision.expansion, "vision.expansion"
    return [
        Axis(f"{on}.depthwise.weight", (output, 1, 3, 3), 0, each),
        Axis(f"{on}.depthwise.bias", (output,), 0, each),
        Axis(f"{on}.squeeze.weight", (output // 16, output, 1, 1), 1, each),
        Axis(f"{on}.excite.weight", (output, output // 16, 1, 1), 0, each),
        Axis(f"{on}.excite.bias", (output,), 0, each),
        Axis("projector.0.weight", (text.hidden_size, output), 1, each, read=True),
    ]


def _decoder_units(full: ModelConfig) -> Iterator[Units]:
    text = full.text
    assert text is not None
    hidden, width = text.hidden_size, text.intermediate_size
    groups = text.num_key_value_heads
    split = (groups, text.num_attention_heads // groups, text.head_dim)
    for layer in range(text.num_hidden_layers):
        on, at = f"text.layers.{layer}.mlp", f"text.layers.{layer}.self_attn"
        yield Units(
            on,
            width,
            (
                Axis(f"{on}.gate_proj.weight", (width, hidden), 0),
                Axis(f"{on}.up_proj.weight", (width, hidden), 0),
                Axis(f"{on}.down_proj.weight", (hidden, width), 1, read=True),
            ),
        )
        queries = [
            Axis(f"{at}.q_proj.weight", (*split, hidden), 0),
            Axis(f"{at}.q_proj.bias", split, 0),
            Axis(f"{at}.o_proj.weight", (hidden, *split), 1, read=True),
        ]
        keys = [
            axis
            for each in ("k_proj", "v_proj")
            for axis in (
                Axis(f"{at}.{each}.weight", (groups, text.head_dim, hidden), 0),
                Axis(f"{at}.{each}.bias", (groups, text.head_dim), 0),
            )
        ]
        for group in range(groups if split[1] > 1 else 0):
            yield Units(f"{at}.group.{group}", split[1], tuple(_within(axis, group, split) for axis in queries))
        # behind them, whose places are those before the groups move
        yield Units(f"{at}.groups", groups, (*queries, *keys))


def _within(axis: Axis, group: int, split: tuple[int, ...]) -> Axis:
    """The heads of one group."""
    return _GroupAxis(axis.name, axis.shape, axis.axis + 1, 1, axis.read, group=group)


@dataclass(frozen=True)
class _GroupAxis(Axis):
    """Units of one group alone: the axis before theirs is held at `group`."""

    group: int = 0


def part(tensors: Mapping[str, torch.Tensor], axis: Axis) -> torch.Tensor:
    """The tensor seen with its units first, (units, all else), as a view where it can be."""
    whole = tensors[axis.name].reshape(axis.shape)
    if isinstance(axis, _GroupAxis):
        whole = whole.select(axis.axis - 1, axis.group)
        return whole.movedim(axis.axis - 1, 0).flatten(1) if whole.ndim > 1 else whole[:, None]
    whole = whole.movedim(axis.axis, 0)
    return whole.reshape(whole.shape[0] // axis.each, -1)


def permute(tensors: dict[str, torch.Tensor], group: Units, order: torch.Tensor) -> None:
    """Bring the units of `group` into `order`, in every tensor, in place."""
    for axis in group.axes:
        tensor = tensors[axis.name]
        whole = tensor.reshape(axis.shape)
        places = (order[:, None] * axis.each + torch.arange(axis.each)).flatten()
        if isinstance(axis, _GroupAxis):
            view = whole.select(axis.axis - 1, axis.group)
            moved = view.index_select(axis.axis - 1, places)
            whole = whole.clone()
            whole.select(axis.axis - 1, axis.group).copy_(moved)
        else:
            whole = whole.index_select(axis.axis, places)
        tensors[axis.name] = whole.reshape(tensor.shape).contiguous()


def scores(group: Units, values: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(units,): the square of the sum of weight x gradient over what reads each unit."""
    total = torch.zeros(group.count)
    for axis in group.axes:
        if axis.read:
            total += (part(values, axis) * part(gradients, axis)).sum(1)
    return total.square()
