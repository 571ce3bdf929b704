"""What everybody quantizes: the shipped reference model, its calibration data, and its weights by kind."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from stages.artifacts import Checkpoint
from stages.data.source import Example, question_source
from stages.models.vlm import VisionLanguageModel
from stages.quantizers.examples import Batch, answer_loss, batch_of, forward
from stages.quantizers.layers import is_matrix

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY / "artifacts" / "reference"
CALIBRATION = (128, 11)  # questions, seed: of everybody, ours too
HEAD, EMBEDDINGS = "text.lm_head.weight", "text.embed_tokens.weight"


@dataclass(frozen=True)
class Kinds:
    """Names of weights. matrices: of the language model, the projector and the tower, 1x1 convolutions among them, but
    not the head; common: the embeddings, the head and the tower's other convolutions."""

    matrices: frozenset[str]
    common: frozenset[str]


def checkpoint() -> Checkpoint:
    return Checkpoint(REFERENCE)


def kinds(model: VisionLanguageModel) -> Kinds:
    matrices, common = set(), set()
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and is_matrix(module)):
            (common if weight == HEAD else matrices).add(weight)
        elif isinstance(module, nn.Embedding | nn.Conv2d):
            common.add(weight)
    return Kinds(frozenset(matrices), frozenset(common))


@cache
def calibration_batches() -> tuple[Batch, ...]:
    """The calibration questions, each a batch of its own, so that no peer sees padding."""
    count, seed = CALIBRATION
    examples: Sequence[Example] = question_source().examples("calibration", count, seed)
    return tuple(batch_of(checkpoint(), [example]) for example in examples)


@cache
def calibration_together() -> tuple[Batch, ...]:
    """The same, those of one length in batches of up to 16: no padding either, and a third of the time."""
    groups: dict[int, list[Batch]] = defaultdict(list)
    for batch in calibration_batches():
        groups[batch.ids.shape[1]].append(batch)
    parts = [group[start : start + 16] for _, group in sorted(groups.items()) for start in range(0, len(group), 16)]
    names = [field.name for field in fields(Batch)]
    return tuple(Batch(*(torch.cat([getattr(each, name) for each in part]) for name in names)) for part in parts)


class Answering(nn.Module):
    """The model as peers want one: (pixels (B, 3, S, S), ids (B, N)) -> logits (B, N, vocabulary)."""

    def __init__(self, model: VisionLanguageModel):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        batch: Any = SimpleNamespace(pixels=pixels, ids=ids)
        return forward(self.model, batch)


def loss(model: Answering, batch: Batch) -> torch.Tensor:
    """The cross entropy of the answer's tokens."""
    return answer_loss(model(batch.pixels, batch.ids), batch)


def with_linears(model: VisionLanguageModel) -> VisionLanguageModel:
    """The same function with each 1x1 convolution as a linear layer, for peers that quantize only linear layers to few
    bits. Names stay; weights become (out, in)."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and is_matrix(module):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _Pointwise(module))
    return model


class _Pointwise(nn.Linear):
    def __init__(self, convolution: nn.Conv2d):
        super().__init__(convolution.in_channels, convolution.out_channels, convolution.bias is not None)
        self.weight = nn.Parameter(convolution.weight.detach().flatten(1))
        self.bias = convolution.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
