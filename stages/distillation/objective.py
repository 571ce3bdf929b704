"""How far a student is from its teacher."""

import torch
from torch import nn
from torch.nn import functional as F

from stages.distillation.source import Outputs, Targets
from stages.models.vlm import VisionLanguageModel


class Objective(nn.Module):
    """The loss of one batch: (1 - hard_share) * temperature^2 * KL(teacher || student) of the answers' tokens at
    `temperature` (arXiv:1503.02531), hard_share * cross entropy of the true tokens, and features * the squared error of
    the visual tokens in units of the teacher's variance (arXiv:1412.6550).

    A student whose visual tokens are narrower or wider gets a linear map to the teacher's, trained with it and then
    dropped; one whose grid is coarser or finer is compared with the teacher's, averaged or repeated.
    """

    def __init__(
        self,
        teacher: VisionLanguageModel,
        student: VisionLanguageModel,
        *,
        temperature: float,
        hard_share: float,
        features: float,
    ):
        super().__init__()
        self.temperature, self.hard_share, self.features = temperature, hard_share, features
        self._grids = teacher.config.vision.grid, student.config.vision.grid
        widths = student.config.text.hidden_size, teacher.config.text.hidden_size
        self.map = nn.Linear(*widths) if features and widths[0] != widths[1] else nn.Identity()

    def forward(self, teacher: Outputs, student: Outputs, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, KL at temperature 1 in nats a token), both scalars."""
        weights = targets.weights / targets.weights.sum()
        heat = self.temperature
        expected, found = (F.log_softmax(outputs.logits / heat, -1) for outputs in (teacher, student))
        loss = (1 - self.hard_share) * heat**2 * (weights * _divergence(expected, found)).sum()
        if self.hard_share:
            losses = F.cross_entropy(student.logits, targets.labels, reduction="none")
            loss = loss + self.hard_share * (weights * losses).sum()
        if self.features:
            loss = loss + self.features * self._feature_loss(teacher.visual, student.visual)
        with torch.no_grad():
            expected, found = (F.log_softmax(outputs.logits, -1) for outputs in (teacher, student))
            return loss, _divergence(expected, found).mean()

    def _feature_loss(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        (rows, columns), grid = self._grids
        if (rows, columns) != grid:
            pictures = teacher.transpose(1, 2).unflatten(2, (rows, columns))
            teacher = F.adaptive_avg_pool2d(pictures, grid).flatten(2).transpose(1, 2)
        variance = teacher.var(dim=(0, 1)).mean().clamp_min(1e-8)
        return F.mse_loss(self.map(student), teacher) / variance


def _divergence(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL of log probabilities (N, V): (N,)."""
    return (expected.exp() * (expected - found)).sum(-1)
