"""A model in pieces that run one after the other, so that one piece's weights are in memory at a time.

The tower's stem, its stages and its expansion; the projector; the embeddings; each layer of the decoder; its last norm.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from pipelines.errors import StageError
from stages.artifacts import Checkpoint
from stages.models.vlm import VisionLanguageModel
from stages.quantizers.examples import Tokens, causal, embed

Run = Callable[[VisionLanguageModel, torch.Tensor, Tokens], torch.Tensor]


@dataclass(frozen=True)
class Piece:
    """name: the module whose weights it takes. run: from what the piece before gives, float32, to what this one gives.

    vision: whether it takes images, (B, C, H, W), rather than tokens; the projector takes (B, T, C).
    """

    name: str
    run: Run

    @property
    def vision(self) -> bool:
        return self.name.startswith(("vision.", "projector"))


EMBEDDINGS, NORM = "text.embed_tokens", "text.norm"


def pieces_of(model: VisionLanguageModel) -> list[Piece]:
    """The pieces in order. Without a tower the first takes no input; each image runs alone through a tower."""
    assert model.config.text is not None
    pieces = []
    if model.config.vision is not None:
        stages = range(len(model.config.vision.widths))
        pieces.append(Piece("vision.patch_embed", _alone(_stem)))
        pieces += [Piece(f"vision.stages.{index}", _alone(_stage(index))) for index in stages]
        pieces.append(Piece("vision.expansion", _alone(_expansion)))
        pieces.append(Piece("projector", lambda model, x, tokens: model.projector(x)))
    pieces.append(Piece(EMBEDDINGS, _embeddings))
    pieces += [Piece(f"text.layers.{index}", _layer(index)) for index in range(model.config.text.num_hidden_layers)]
    pieces.append(Piece(NORM, lambda model, x, tokens: model.text.norm(x)))
    return pieces


@contextmanager
def loaded(
    model: VisionLanguageModel, names: tuple[str, ...], checkpoint: Checkpoint, device: torch.device
) -> Iterator[None]:
    """The weights of these modules of `model`, which is on the meta device, in float32 on `device`.

    An embedding's stay as they are stored: a few of its rows are looked up.
    """
    with checkpoint.tensors() as tensors:
        for name in names:
            module = model.get_submodule(name)
            kept = isinstance(module, nn.Embedding) and len(names) == 1
            state = {key: tensors[f"{name}.{key}"].to(device) for key in module.state_dict()}
            module.load_state_dict({key: value if kept else value.float() for key, value in state.items()}, assign=True)
            module.requires_grad_(False)
    try:
        yield
    finally:
        for name in names:
            model.get_submodule(name).to("meta")


def _alone(run: Callable[[VisionLanguageModel, torch.Tensor], torch.Tensor]) -> Run:
    """Image by image, so that memory does not grow with the batch."""
    return lambda model, x, tokens: torch.cat([run(model, image) for image in torch.split(x, 1)])


def _stem(model: VisionLanguageModel, x: torch.Tensor) -> torch.Tensor:
    for layer in model.vision.patch_embed:
        x = F.gelu(layer(x))
    return x


def _stage(index: int) -> Callable[[VisionLanguageModel, torch.Tensor], torch.Tensor]:
    def run(model: VisionLanguageModel, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = model.vision.stages[index](x)
        return given

    return run


def _expansion(model: VisionLanguageModel, x: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = model.vision.expansion(x)
    return features.flatten(2).transpose(1, 2)


def _embeddings(model: VisionLanguageModel, x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    if not x.numel():
        return F.embedding(tokens.ids, model.text.embed_tokens.weight).float()
    return embed(model, x, tokens).float()


def _layer(index: int) -> Run:
    return lambda model, x, tokens: model.text.layers[index](x, causal(model, x))


def check_kind(checkpoint: Checkpoint) -> None:
    """Raise StageError for a module of the user's own, of which no sequence is known."""
    if checkpoint.config().module is not None:
        raise StageError(
            "calibrate runs FastVLM and Qwen2 models; this is a module of your own",
            hint="Choose what needs no calibration: quantize.method=rtn, or kmeans with quantize.importance=uniform.",
        )
