"""A model brought into order: what it can best do without comes last, in every dimension."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from stages.distillation.source import Source
from stages.elastic.order import Units, permute, scores, units
from stages.elastic.view import FACTORS, Elastic, Layers
from stages.models.vlm import ModelConfig, VisionLanguageModel


def sorted_model(model: VisionLanguageModel, source: Source, batches: Iterable[Any]) -> Elastic:
    """The same function as `model`, sorted by its importance for the answers in `batches`, which are gone through once
    for widths and once for each layer that could be left out. The first of the FACTORS' ranks matter most."""
    batches = list(batches)
    groups = list(units(model.config))
    found = _importance(model, source, batches, groups)
    tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for group in groups:
        permute(tensors, group, found[group.name].argsort(descending=True, stable=True))
    if _has_own_head(model.config):
        tensors |= _factors(tensors["text.lm_head.weight"])
    elastic = Elastic(model.config, tensors, _as_they_are(model.config))
    elastic.layers = _by_loss(elastic, source, batches)
    return elastic


def _importance(
    model: VisionLanguageModel, source: Source, batches: list[Any], groups: list[Units]
) -> dict[str, torch.Tensor]:
    total = {group.name: torch.zeros(group.count) for group in groups}
    parameters = dict(model.named_parameters())
    for batch in batches:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(source.outputs(model, batch).logits, source.targets(batch).labels).backward()
        gradients = {name: each.grad for name, each in parameters.items() if each.grad is not None}
        with torch.no_grad():
            for group in groups:
                total[group.name] += scores(group, parameters, gradients)
    model.zero_grad(set_to_none=True)
    return total


def _has_own_head(config: ModelConfig) -> bool:
    assert config.text is not None
    return not config.text.tie_word_embeddings and config.text.head_rank is None


def _factors(head: torch.Tensor) -> dict[str, torch.Tensor]:
    """The head (V, D) as a product of (V, D) and (D, D), by its singular values: the first R columns and rows are the
    best product of rank R."""
    left, values, right = torch.linalg.svd(head.double(), full_matrices=False)
    root = values.sqrt()
    found = (root[:, None] * right, left * root)
    return {name: each.float().contiguous() for name, each in zip(FACTORS, found, strict=True)}


def _as_they_are(config: ModelConfig) -> dict[str, list[int]]:
    vision, text = config.vision, config.text
    assert vision is not None and text is not None
    tower = {f"vision.stages.{index}.blocks": list(range(depth)) for index, depth in enumerate(vision.depths)}
    return {"text.layers": list(range(text.num_hidden_layers)), **tower}


def _by_loss(elastic: Elastic, source: Source, batches: list[Any]) -> Layers:
    """The layers of each list by the loss without them, the greatest first."""
    found: dict[str, list[int]] = {}
    for prefix, layers in elastic.layers.items():
        if len(layers) == 1:
            found[prefix] = list(layers)
            continue
        without = [
            _loss_without(elastic, source, batches, prefix, [*(each for each in layers if each != layer), layer])
            for layer in layers
        ]
        found[prefix] = sorted(layers, key=lambda layer: (-without[layer], layer))
    return found


@torch.no_grad()
def _loss_without(elastic: Elastic, source: Source, batches: list[Any], prefix: str, order: list[int]) -> float:
    """The cross entropy of the answers, in nats a token, without the last of `order`."""
    shallower = Elastic(elastic.full, elastic.tensors, {**elastic.layers, prefix: order})
    config = _with_depth(elastic.full, prefix, len(order) - 1)
    total, count = 0.0, 0
    for batch in batches:
        outputs = shallower.answers(config, partial(source.outputs, batch=batch))
        labels = source.targets(batch).labels
        total += float(F.cross_entropy(outputs.logits, labels, reduction="sum"))
        count += len(labels)
    return total / count


def _with_depth(config: ModelConfig, prefix: str, depth: int) -> ModelConfig:
    vision, text = config.vision, config.text
    assert vision is not None and text is not None
    if prefix == "text.layers":
        return replace(config, text=replace(text, num_hidden_layers=depth))
    stage = int(prefix.split(".")[2])
    depths = tuple(depth if index == stage else each for index, each in enumerate(vision.depths))
    return replace(config, vision=replace(vision, depths=depths))
