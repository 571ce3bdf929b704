"""FastViTHD's tensors in Apple's names and in timm's (fastvit_mci3), deployed or as trained, block by block.

As trained, a convolution has branches, each with a batch norm: MobileOne's (arXiv:2206.04040) are kernels, a 1x1 scale
and an identity; a large kernel has a 3x3 one beside it; RepMixer is x + scale * (mixer(x) - norm(x)) (FastViT,
arXiv:2303.14189); the positional encoding has an identity beside it. Deployed, each is one convolution with a bias. A
checkpoint may mix both forms. The depthwise convolution of the feed-forward block keeps its batch norm in either.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

from stages.models.fastvit import VisionConfig
from stages.models.layouts.tensors import Convolution, Shape, Tensors, Term

_ATTENTION = (".qkv.", ".token_mixer.proj.", "layer_scale_1", "layer_scale_2")  # what blocks with attention alone have
HEAD_DIM, STRIDE, SMALL_KERNEL, POSITION_KERNEL = 32, 2, 3, 7  # constants of the published code
_Size = TypeVar("_Size", int, float)


@dataclass(frozen=True)
class Names:
    """How a layout calls the parts of the tower; `numbered`: stages are numbers of one list, shared with what lies
    between them (Apple), else every stage has its own blocks (timm)."""

    root: str
    numbered: bool
    stem: str
    ffn: str
    scale: str
    final: str
    squeeze: tuple[str, str]
    kernels: str
    pointwise: str
    skip: str
    large: tuple[str, str, str]
    position: str

    def block_pattern(self) -> re.Pattern[str]:
        return re.compile(r"network\.(\d+)\.(\d+)\." if self.numbered else r"stages\.(\d+)\.blocks\.(\d+)\.")

    def paths(self, mixers: Iterable[str]) -> list[tuple[str, str, str]]:
        """The prefixes of each stage's blocks, its downsampling and its positional encoding."""
        found, number = [], 0
        for stage, mixer in enumerate(mixers):
            if not self.numbered:
                root = f"{self.root}stages.{stage}."
                found.append((f"{root}blocks.", f"{root}downsample.proj.", f"{root}pos_emb."))
                continue
            down = f"{self.root}network.{number}.proj."
            number += bool(stage)
            position = f"{self.root}network.{number}."
            number += mixer == "attention"
            found.append((f"{self.root}network.{number}.", down, position))
            number += 1
        return found


APPLE = Names(
    root="model.vision_tower.vision_tower.model.",
    numbered=True,
    stem="patch_embed",
    ffn="convffn",
    scale="",
    final="conv_exp",
    squeeze=("reduce", "expand"),
    kernels="rbr_conv",
    pointwise="rbr_scale",
    skip="rbr_skip",
    large=("lkb_reparam", "lkb_origin", "small_conv"),
    position="pe",
)
TIMM = Names(
    root="model.vision_tower.timm_model.",
    numbered=False,
    stem="stem",
    ffn="mlp",
    scale=".gamma",
    final="final_conv",
    squeeze=("fc1", "fc2"),
    kernels="conv_kxk",
    pointwise="conv_scale",
    skip="identity",
    large=("reparam_conv", "large_conv", "small_conv"),
    position="pos_enc",
)


def describe(shapes: dict[str, Shape], names: Names, image_size: int) -> VisionConfig:
    """The tower's configuration, from the shapes of a checkpoint's tensors by name.

    Sizes are what most of the tensors say, so that a single wrong one is found by comparison.
    """
    own = {name.removeprefix(names.root): shape for name, shape in shapes.items() if name.startswith(names.root)}
    depths: dict[int, int] = {}
    attention: set[int] = set()
    width: dict[int, list[int]] = {}
    hidden: dict[int, list[int]] = {}
    for name, shape in own.items():
        if found := names.block_pattern().match(name):
            stage = int(found[1])
            depths[stage] = max(depths.get(stage, 0), int(found[2]) + 1)
            if any(part in name for part in _ATTENTION):
                attention.add(stage)
            for end, axis, votes in (
                (".conv.conv.weight", 0, width),
                (".conv.bn.weight", 0, width),
                (".fc2.bias", 0, width),
                (".fc1.weight", 0, hidden),
                (".fc1.bias", 0, hidden),
                (".fc2.weight", 1, hidden),
            ):
                if name.endswith(names.ffn + end) and len(shape) > axis:
                    votes.setdefault(stage, []).append(shape[axis])
    stages = sorted(depths)
    widths = [_most(width.get(stage, ()), 1) for stage in stages]
    ratios = [_most(hidden.get(stage, ()), 1) / each for stage, each in zip(stages, widths, strict=True)]
    large = tuple(f".{each}" for each in (names.large[0] + ".weight", names.large[1] + ".conv.weight"))
    return VisionConfig(
        image_size=image_size,
        stem_width=_most(_outputs(own, f"{names.stem}.0.", f"{names.stem}.1."), 1),
        depths=tuple(depths[stage] for stage in stages),
        widths=tuple(widths),
        mixers=tuple("attention" if stage in attention else "repmixer" for stage in stages),
        strides=tuple((STRIDE, STRIDE) if index else (1, 1) for index in range(len(stages))),
        mlp_ratio=_most(ratios, 1),
        ffn_kernel=_most((s[-1] for n, s in own.items() if n.endswith(f"{names.ffn}.conv.conv.weight") and s), 7),
        patch_kernel=_most((s[-1] for n, s in own.items() if ".proj.0." in n and n.endswith(large) and s), 7),
        head_dim=HEAD_DIM,
        expansion=_most(_outputs(own, f"{names.final}."), 1) // widths[-1] if widths else 1,
    )


def _outputs(shapes: dict[str, Shape], *prefixes: str) -> list[int]:
    """The output channels that the tensors under `prefixes` speak of, but for squeeze and excitation's."""
    return [shape[0] for name, shape in shapes.items() if name.startswith(prefixes) and shape and ".se." not in name]


def _most(values: Iterable[_Size], default: _Size) -> _Size:
    counts = Counter(values).most_common(1)
    return counts[0][0] if counts else default


def add_tower(tensors: Tensors, config: VisionConfig, names: Names, present: Collection[str], trained: bool) -> None:
    """Say where each tensor of the tower comes from; `present` decides the form of each block, and where it holds
    neither, `trained`: as trained, or deployed."""
    tower = _Tower(tensors, names, present, trained)
    stem = config.stem_width
    shapes = ((stem, 3, 3, 3), (stem, 1, 3, 3), (config.widths[0], stem, 1, 1))
    for index, shape in enumerate(shapes):
        skip = index == 2 and shape[0] == shape[1]
        tower.mobile_one(f"vision.patch_embed.{index}", f"{names.root}{names.stem}.{index}", shape, skip, "optional")
    for stage, (blocks, down, position) in enumerate(names.paths(config.mixers)):
        width, attention = config.widths[stage], config.mixers[stage] == "attention"
        target = f"vision.stages.{stage}"
        if stage:
            kernel = (width, 1, config.patch_kernel, config.patch_kernel)
            tower.large_kernel(f"{target}.downsample.depthwise", f"{down}0", kernel)
            tower.mobile_one(f"{target}.downsample.pointwise", f"{down}1", (width, width, 1, 1), True, "")
        if attention:
            tower.position(f"{target}.position", position, (width, 1, POSITION_KERNEL, POSITION_KERNEL))
        for block in range(config.depths[stage]):
            add = tower.attention_block if attention else tower.mixer_block
            add(f"{target}.blocks.{block}", f"{blocks}{block}", width, config)
    final, width = f"{names.root}{names.final}", config.output_width
    tower.mobile_one("vision.expansion.depthwise", final, (width, 1, 3, 3), config.expansion == 1, "scale")
    for name, source in zip(("squeeze", "excite"), names.squeeze, strict=True):
        inputs, outputs = (width, width // 16) if name == "squeeze" else (width // 16, width)
        tower.pointwise(f"vision.expansion.{name}", f"{final}.se.{source}", (outputs, inputs, 1, 1))


class _Tower:
    """Adds blocks to `tensors`, each in the form that the checkpoint has it in."""

    def __init__(self, tensors: Tensors, names: Names, present: Collection[str], trained: bool):
        self.tensors, self.names, self.trained = tensors, names, trained
        self.present = present
        self.groups: set[str] = set()
        for name in present:
            parts = name.split(".")
            self.groups.update(".".join(parts[:count]) for count in range(1, len(parts)))

    def deployed(self, source: str, single: str, *branches: str) -> bool:
        """Whether the block `source` is one convolution, `single`, rather than `branches`."""
        if f"{source}.{single}" in self.groups:
            return True
        return not (self.trained or any(f"{source}.{branch}" in self.groups for branch in branches))

    def mobile_one(self, target: str, source: str, shape: Shape, skip: bool, scale: str) -> None:
        """scale: "scale" where the block is trained with that branch, "optional" where it may be, or ""."""
        names = self.names
        if self.deployed(source, "reparam_conv", names.kernels, names.pointwise, names.skip):
            terms = _single(f"{source}.reparam_conv")
        else:
            terms = self.branches(source, shape, skip, scale)
        self.tensors.fold(target, Convolution(shape, terms))

    def branches(
        self, source: str, shape: Shape, skip: bool, scale: str, *, kernels: bool = True, sign: int = 1, by: str = ""
    ) -> tuple[Term, ...]:
        names, terms = self.names, []
        count = 1
        while f"{source}.{names.kernels}.{count}" in self.groups:
            count += 1
        for branch in range(count if kernels else 0):
            prefix = f"{source}.{names.kernels}.{branch}"
            terms.append(Term(f"{prefix}.conv.weight", norm=f"{prefix}.bn", sign=sign, scale=by or None))
        prefix = f"{source}.{names.pointwise}"
        if scale == "scale" or (scale == "optional" and prefix in self.groups):
            terms.append(Term(f"{prefix}.conv.weight", norm=f"{prefix}.bn", size=1, sign=sign, scale=by or None))
        if skip:
            terms.append(Term(None, norm=f"{source}.{names.skip}", sign=sign, scale=by or None))
        return tuple(terms)

    def large_kernel(self, target: str, source: str, shape: Shape) -> None:
        single, large, small = self.names.large
        if self.deployed(source, single, large, small):
            terms = _single(f"{source}.{single}")
        else:
            terms = (
                Term(f"{source}.{large}.conv.weight", norm=f"{source}.{large}.bn"),
                Term(f"{source}.{small}.conv.weight", norm=f"{source}.{small}.bn", size=SMALL_KERNEL),
            )
        self.tensors.fold(target, Convolution(shape, terms))

    def position(self, target: str, source: str, shape: Shape) -> None:
        source = source.removesuffix(".")
        if self.deployed(source, "reparam_conv", self.names.position):
            terms = _single(f"{source}.reparam_conv")
        else:
            terms = (*_single(f"{source}.{self.names.position}"), Term(None))
        self.tensors.fold(target, Convolution(shape, terms))

    def mixer_block(self, target: str, source: str, width: int, config: VisionConfig) -> None:
        mixer, shape = f"{source}.token_mixer", (width, 1, 3, 3)
        if self.deployed(mixer, "reparam_conv", "mixer", "norm"):
            terms = _single(f"{mixer}.reparam_conv")
        else:
            by = f"{mixer}.layer_scale{self.names.scale}"
            terms = (
                Term(None),
                *self.branches(f"{mixer}.mixer", shape, True, "scale", by=by),
                *self.branches(f"{mixer}.norm", shape, True, "", kernels=False, sign=-1, by=by),
            )
        self.tensors.fold(f"{target}.mixer", Convolution(shape, terms))
        self.feed_forward(target, source, width, config, "layer_scale")

    def attention_block(self, target: str, source: str, width: int, config: VisionConfig) -> None:
        for part in ("weight", "bias"):
            self.tensors.store(f"{target}.norm.{part}", f"{source}.norm.{part}", (width,))
        mixer = f"{source}.token_mixer"
        self.tensors.store(f"{target}.attention.qkv.weight", f"{mixer}.qkv.weight", (3 * width, width))
        scale = f"{source}.layer_scale_1{self.names.scale}"
        terms = _single(f"{mixer}.proj", scale)
        self.tensors.fold(f"{target}.attention.projection", Convolution((width, width), terms))
        self.feed_forward(target, source, width, config, "layer_scale_2")

    def feed_forward(self, target: str, source: str, width: int, config: VisionConfig, scale: str) -> None:
        ffn, hidden = f"{source}.{self.names.ffn}", config.inner_width(width)
        kernel = (width, 1, config.ffn_kernel, config.ffn_kernel)
        depthwise = Term(f"{ffn}.conv.conv.weight", norm=f"{ffn}.conv.bn")
        self.tensors.fold(f"{target}.ffn.depthwise", Convolution(kernel, (depthwise,)))
        self.pointwise(f"{target}.ffn.expand", f"{ffn}.fc1", (hidden, width, 1, 1))
        scaled = _single(f"{ffn}.fc2", f"{source}.{scale}{self.names.scale}")
        self.tensors.fold(f"{target}.ffn.contract", Convolution((width, hidden, 1, 1), scaled))

    def pointwise(self, target: str, source: str, shape: Shape) -> None:
        self.tensors.fold(target, Convolution(shape, _single(source)))


def _single(source: str, scale: str | None = None) -> tuple[Term, ...]:
    return (Term(f"{source}.weight", bias=f"{source}.bias", scale=scale),)
