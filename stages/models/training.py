"""One optimisation step of a vision-language model on packed questions, and how its loss is made."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from stages.data.batches import GRIDS, Batch
from stages.models.qwen2 import MaskedContext
from stages.models.vlm import VisionLanguageModel


class Trainee(nn.Module):
    """The model with an auxiliary head, used in training only, that names what each visual token sees, and where it is
    (without it the tower, which has no absolute positions, learns left from right late)."""

    def __init__(self, model: VisionLanguageModel):
        super().__init__()
        self.model = model
        self.heads = (*GRIDS, *model.config.vision.grid)
        self.grid_head = nn.Linear(model.config.vision.output_width, sum(self.heads))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logits (tokens, V) of all answer tokens, answer loss, auxiliary loss).

        A token weighs 1/sqrt(n) in an answer of n: long words would outweigh all else, each counted once would not.
        """
        features = self.model.vision(normalized(batch.pixels))
        visual = self.model.projector(features)
        count, questions, length = batch.ids.shape
        embedded = self.model.text.embed_tokens(batch.ids.reshape(count, questions * length))
        context = packed_context(self.model, visual.shape[1], questions, length, visual.device)
        hidden = self.model.text.hidden(torch.cat([visual, embedded], dim=1), context)
        hidden = hidden[:, visual.shape[1] :].view(count, questions, length, -1)[:, :, :-1]
        targets, wanted = batch.ids[:, :, 1:], batch.answers[:, :, 1:]
        logits = self.model.text.head(hidden[wanted])
        losses = F.cross_entropy(logits, targets[wanted], reduction="none")
        weights = wanted.sum(-1, keepdim=True).clamp_min(1).rsqrt().expand_as(wanted)[wanted]
        loss = (losses * weights).sum() / weights.sum()
        return logits, loss, self._grid_loss(features, batch.grids)

    def _grid_loss(self, features: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        rows, columns = self.model.config.vision.grid
        places = torch.arange(rows * columns, device=features.device)
        where = torch.stack([places // columns, places % columns]).expand(len(grids), -1, -1)
        total = features.new_zeros(())
        labels = torch.cat([grids, where], dim=1).unbind(1)
        for number, scores in enumerate(self.grid_head(features).split(self.heads, dim=-1)):
            weight = torch.ones(scores.shape[-1], device=scores.device)
            if number < len(GRIDS):
                weight[0] = 0.1  # most cells hold nothing
            total = total + F.cross_entropy(scores.transpose(1, 2), labels[number], weight=weight)
        return total


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in -1..1, channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def packed_context(
    model: VisionLanguageModel, visual: int, questions: int, length: int, device: torch.device
) -> MaskedContext:
    """All questions of an image behind it, each blind to the others, each at the positions right behind the image."""
    rows = torch.arange(visual, device=device)
    tail = torch.arange(visual, visual + length, device=device)
    positions = torch.cat([rows, tail.repeat(questions)])
    segment = torch.cat(
        [torch.zeros_like(rows), torch.arange(1, questions + 1, device=device).repeat_interleave(length)]
    )
    order = torch.arange(len(positions), device=device)
    causal = order[:, None] >= order[None, :]
    mask = causal & ((segment[None, :] == 0) | (segment[:, None] == segment[None, :]))
    return MaskedContext(positions, mask, model.config.text)


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    progress = max(0.0, (step - warmup) / max(1, steps - warmup))
    return peak * min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def optimizer_of(trainee: Trainee, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv:1711.05101); vectors (norms, biases) are not decayed."""
    parameters = list(trainee.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
