"""Quantization-aware training: all codes, grids and float tensors together, distilled from the float32 model.

Rounding passes gradients straight through to a latent weight (arXiv:1308.3432). Scales learn as in LSQ (Esser et al.,
arXiv:1902.08153), palette entries by the gradients of the weights that use them. Scales and entries are rounded to
float16 in every forward pass, so that what was trained is, bit for bit, what the results' `dense()` gives.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.distillation.session import Group, distil
from stages.distillation.source import ProceduralQuestions, Source
from stages.models.vlm import VisionLanguageModel
from stages.quantizers.grids import Grid, Result, learned, start
from stages.schema import DistillConfig

STATE = "qat.pt"


def train(
    checkpoint: Checkpoint,
    results: Mapping[str, Result],
    config: DistillConfig,
    work: Workspace,
    source: Source | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, Result], dict[str, torch.Tensor]]:
    """The results of the same formats, sizes and group sizes, trained; and every other tensor of the model, trained,
    float32 with values that float16 holds.

    results: post-training ones, where training starts, by weight name. source: what to train on; None: the reference
    data's training questions. tensors: all that `results` were made from, where that is not the checkpoint itself but
    another form of the same function (see awq). Raises StageError for a result that fits no weight.
    """
    teacher, student = checkpoint.model(), checkpoint.model()
    if tensors is not None:
        student.load_state_dict({name: tensors[name].float() for name in tensors})
    source = source or ProceduralQuestions(checkpoint, seed=config.seed, batch=config.batch, workers=1)
    grids = attach(student, results)
    latent, learning, floats = _parameters(student, grids)
    groups = [
        Group(latent, 1.0, False),
        Group(learning, config.grid_rate, False),
        Group(floats, config.float_rate, False),
    ]
    distil(teacher, student, groups, source, config, work, STATE)
    with torch.no_grad():
        trained = {name: grid.result(_latent(student, name)) for name, grid in grids.items()}
        rest = {name: _rounded(value) for name, value in student.named_parameters() if "parametrizations." not in name}
    return trained, rest


def attach(model: VisionLanguageModel, results: Mapping[str, Result]) -> dict[str, Grid]:
    """Give each weight of `results` its grid: the module computes with fake-quantized weights from then on."""
    names = dict(model.named_parameters())
    grids: dict[str, Grid] = {}
    for name, result in results.items():
        if name not in names:
            raise StageError(f"qat: there is no weight '{name}' in the model")
        if result.dense().numel() != names[name].numel():
            raise StageError(f"qat: the result for '{name}' has another size than the weight")
        grids[name] = learned(result, names[name].detach().flatten(1))
        weight = names[name]
        with torch.no_grad():
            weight.copy_(start(result, weight.flatten(1)).view(weight.shape))
        path, _, attribute = name.rpartition(".")
        parametrize.register_parametrization(model.get_submodule(path), attribute, grids[name])
    return grids


def _parameters(
    model: VisionLanguageModel, grids: Mapping[str, Grid]
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Latent weights, grids, and all that stays float."""
    latent = [_latent(model, name) for name in grids]
    learning = [parameter for grid in grids.values() for parameter in grid.parameters()]
    floats = [value for name, value in model.named_parameters() if "parametrizations." not in name]
    return latent, learning, floats


def _latent(model: VisionLanguageModel, name: str) -> nn.Parameter:
    path, _, attribute = name.rpartition(".")
    parameter: nn.Parameter = model.get_submodule(path).parametrizations[attribute].original
    return parameter


def _rounded(value: torch.Tensor) -> torch.Tensor:
    half = value.detach().half().float()
    return torch.where(half.isfinite(), half, value.detach())
