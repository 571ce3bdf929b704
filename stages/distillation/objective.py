"""How far a student is from its teacher."""

import torch
from torch import nn
from torch.nn import functional as F

from stages.distillation.source import Outputs, Targets
from stages.models.vlm import VisionLanguageModel


class Objective(nn.Module):
    """The loss of one batch: (1 - hard_share) * temperature^2 * KL(teacher || student) of the answers' tokens at
    `temperature` (arXiv:1503.02531), hard_share * cross entropy of the true tokens, features * the squared error of the
    visual tokens (arXiv:1412.6550), and hidden * that of the decoder layers' outputs at the text tokens, the mean over
    the student's layers (arXiv:1909.10351). Errors are in units of the teacher's variance.

    A student of another width gets linear maps to the teacher's, trained with it and then dropped; one whose visual
    grid is coarser or finer is compared with the teacher's, averaged or repeated; one with other layers is compared
    with the teacher's at the same share of the depth.
    """

    def __init__(
        self,
        teacher: VisionLanguageModel,
        student: VisionLanguageModel,
        *,
        temperature: float,
        hard_share: float,
        features: float,
        hidden: float,
    ):
        super().__init__()
        self.temperature, self.hard_share, self.features, self.hidden = temperature, hard_share, features, hidden
        self._grids = teacher.config.vision.grid, student.config.vision.grid
        widths = student.config.text.hidden_size, teacher.config.text.hidden_size
        other = widths[0] != widths[1]
        self.visual_map = nn.Linear(*widths) if features and other else nn.Identity()
        self.hidden_map = nn.Linear(*widths) if hidden and other else nn.Identity()

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
            loss = loss + self.features * self._visual_error(teacher.visual, student.visual)
        if self.hidden:
            loss = loss + self.hidden * self._hidden_error(teacher.hidden, student.hidden)
        with torch.no_grad():
            expected, found = (F.log_softmax(outputs.logits, -1) for outputs in (teacher, student))
            return loss, _divergence(expected, found).mean()

    def _visual_error(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        (rows, columns), grid = self._grids
        if (rows, columns) != grid:
            pictures = teacher.transpose(1, 2).unflatten(2, (rows, columns))
            teacher = F.adaptive_avg_pool2d(pictures, grid).flatten(2).transpose(1, 2)
        return _error(self.visual_map(student), teacher)

    def _hidden_error(self, teacher: list[torch.Tensor], student: list[torch.Tensor]) -> torch.Tensor:
        counts = len(teacher), len(student)
        partners = [teacher[(index + 1) * counts[0] // counts[1] - 1] for index in range(counts[1])]
        errors = [_error(self.hidden_map(found), expected) for found, expected in zip(student, partners, strict=True)]
        return torch.stack(errors).mean()


def _error(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The mean squared error, in units of the variance of what was expected, channel by channel on average."""
    variance = expected.flatten(0, -2).var(dim=0).mean().clamp_min(1e-8)
    return F.mse_loss(found, expected) / variance


def _divergence(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL of log probabilities (N, V): (N,)."""
    return (expected.exp() * (expected - found)).sum(-1)
