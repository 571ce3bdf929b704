"""What a student is distilled on: a source of batches, and how a model answers one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from pipelines.errors import StageError
from stages.artifacts import Checkpoint
from stages.data.batches import LENGTH, Batch, training_batches
from stages.data.questions import corpus
from stages.models.training import packed_context
from stages.models.vlm import VisionLanguageModel

TEMPLATE, END = "{image}{question}<|im_start|>", "<|im_end|>"  # as stages/data/batches.py packs them


@dataclass
class Outputs:
    """What a model says of a batch.

    logits (N, V) float32: of the N tokens of all answers, each predicted from the true tokens before it; visual (B, T,
    D): the images' features as the language model gets them; hidden: of each decoder layer what it adds up to at the M
    text tokens, (M, D).
    """

    logits: torch.Tensor
    visual: torch.Tensor
    hidden: list[torch.Tensor]


@dataclass
class Targets:
    """What a batch says itself. labels (N,) int64: the answers' tokens; weights (N,) float32: what each counts."""

    labels: torch.Tensor
    weights: torch.Tensor


class Source(Protocol):
    """Batches to distil on, of a type that only the source itself knows; step n's depends on n alone, so that a run
    can stop anywhere and go on. Teacher and student are given the same batch."""

    def batches(self, start: int, stop: int) -> Iterable[Any]:
        """The batches of steps start..stop-1."""
        ...

    def moved(self, batch: Any, device: torch.device) -> Any: ...

    def targets(self, batch: Any) -> Targets: ...

    def outputs(self, model: VisionLanguageModel, batch: Any) -> Outputs: ...


class ProceduralQuestions:
    """The reference data's training batches: each image once, with four questions behind it that share its features.

    The student's own preprocessing scales the pixels; a model of another resolution gets them resized. Raises
    StageError for a prompt that is not the reference model's, and for a tokenizer that makes questions too long.
    """

    def __init__(self, student: Checkpoint, *, seed: int, batch: int, workers: int):
        settings = student.preprocessing()
        self._tokenizer, self._grid = student.tokenizer(), student.config().vision.grid
        _check_prompt(settings, self._tokenizer)
        self._seed, self._batch, self._workers = seed, batch, workers
        self._mean, self._std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def batches(self, start: int, stop: int) -> Iterable[Batch]:
        return training_batches(
            self._tokenizer,
            seed=self._seed,
            batch=self._batch,
            grid=self._grid,
            start=start,
            stop=stop,
            workers=self._workers,
        )

    def moved(self, batch: Batch, device: torch.device) -> Batch:
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(batch).items()})

    def targets(self, batch: Batch) -> Targets:
        """Each token counts the same: a word is read right when all of its letters are."""
        wanted = batch.answers[:, :, 1:]
        labels = batch.ids[:, :, 1:][wanted]
        return Targets(labels, torch.ones(len(labels), device=labels.device))

    def outputs(self, model: VisionLanguageModel, batch: Batch) -> Outputs:
        visual = model.encode(self._images(batch.pixels, model.config.vision.image_size))
        count, questions, length = batch.ids.shape
        embedded = model.text.embed_tokens(batch.ids.reshape(count, questions * length))
        context = packed_context(model, visual.shape[1], questions, length, visual.device)
        x, states, text = torch.cat([visual, embedded], dim=1), [], batch.ids.flatten(1) != 0
        for layer in model.text.layers:
            x = layer(x, context)
            states.append(x[:, visual.shape[1] :][text])
        hidden = model.text.norm(x[:, visual.shape[1] :]).view(count, questions, length, -1)[:, :, :-1]
        return Outputs(model.text.head(hidden[batch.answers[:, :, 1:]]), visual, states)

    def _images(self, pixels: torch.Tensor, size: int) -> torch.Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, size, size) float32, normalised, channels last in memory."""
        images = pixels.permute(0, 3, 1, 2).float()
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return images.div(255.0).sub(self._mean.to(images)).div(self._std.to(images))


def _check_prompt(settings: dict[str, Any], tokenizer: Tokenizer) -> None:
    found = settings["prompt_template"], settings["end_token"]
    if found != (TEMPLATE, END):
        raise StageError(
            f"the training questions end in {END} and are asked as {TEMPLATE!r}; preprocessing.json has the "
            f"end_token {found[1]} and the prompt_template {found[0]!r}",
            hint="Only a model that learned these questions can be searched or trained here: set search=off, or a "
            "quantize method without training.",
        )
    longest = max(len(tokenizer.encode(line).ids) for line in corpus())
    if longest + 2 > LENGTH:
        raise StageError(
            f"the training questions have up to {longest} tokens by this tokenizer.json, and are packed into {LENGTH} "
            "tokens with their answers",
            hint="Expected the reference model's tokenizer.json.",
        )
