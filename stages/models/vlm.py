"""The models that can be built: tower, projector and decoder joined, a decoder alone, a user's module; their graphs."""

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pipelines.errors import CheckpointError
from stages.models.fastvit import FastViT, VisionConfig, reparameterized
from stages.models.qwen2 import CachedContext, Qwen2, TextConfig


@dataclass(frozen=True)
class ModuleConfig:
    """A user's own torch module, whose one graph is `main`.

    target: package.module.Class, called with `arguments`. inputs: {name of a parameter of forward: {"shape":
    [...], "dtype": "float32" or "int32"}}; outputs: names, in the order in which forward returns them. Tensors keep the
    names of its state_dict.
    """

    target: str
    arguments: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    outputs: list[str]


@dataclass(frozen=True)
class ModelConfig:
    """config.json of a checkpoint: vision and text (FastVLM), text alone (Qwen2), or a user's module.

    image_token_id stands, once for each visual token, where the image goes.
    """

    vision: VisionConfig | None
    text: TextConfig | None
    image_token_id: int | None = None
    module: ModuleConfig | None = None

    @property
    def architecture(self) -> str:
        return "module" if self.module else "fastvlm" if self.vision else "qwen2"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        vision, text, module = (values.get(key) for key in ("vision", "text", "module"))
        return cls(
            VisionConfig(**{key: _tupled(value) for key, value in vision.items()}) if vision else None,
            TextConfig(**text) if text else None,
            values.get("image_token_id"),
            ModuleConfig(**module) if module else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """What from_dict reads; what the architecture does not have is left out."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        if self.text:
            values["text"] = self.text.to_dict()
        return {"architecture": self.architecture, **values}

    def build(self) -> nn.Module:
        """The torch model on the default device, in its deployed form; parameters are named as in the checkpoint.

        Raises CheckpointError where a user's module cannot be imported or made.
        """
        if self.module:
            return _imported(self.module)
        return VisionLanguageModel(self) if self.vision else LanguageModel(self)


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def _imported(config: ModuleConfig) -> nn.Module:
    name, _, attribute = config.target.rpartition(".")
    try:
        module = getattr(importlib.import_module(name), attribute)(**config.arguments)
    except Exception as cause:  # whatever the user's own code raises
        raise CheckpointError(
            f"model.module: {config.target} cannot be made: {type(cause).__name__}: {cause}",
            hint="_target_ is package.module.Class, in the project or beside --config-dir; other keys are arguments.",
        ) from cause
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"model.module: {config.target} is no torch.nn.Module")
    return module


class LanguageModel(nn.Module):
    """A Qwen2 decoder without a tower."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        assert config.text is not None
        self.config = config
        self.text = Qwen2(config.text)


class VisionLanguageModel(nn.Module):
    """FastVLM's architecture (arXiv:2412.13303) at any size. `trainable` chooses the tower's form (see fastvit)."""

    def __init__(self, config: ModelConfig, trainable: bool = False):
        super().__init__()
        assert config.vision is not None and config.text is not None
        self.config = config
        hidden = config.text.hidden_size
        self.vision = FastViT(config.vision, trainable)
        self.projector = nn.Sequential(
            nn.Linear(config.vision.output_width, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.text = Qwen2(config.text)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 3, S, S) float, normalised -> visual tokens (B, T, hidden_size)."""
        return self.projector(self.vision(image))

    def embed(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """Token embeddings (B, N, hidden_size), with row i of image_features wherever ids[i] is the image token."""
        is_image = (input_ids == self.config.image_token_id).unsqueeze(-1)
        return torch.where(is_image, image_features, self.text.embed_tokens(input_ids))

    def deployed(self) -> "VisionLanguageModel":
        """The same function with the tower reparameterised."""
        model = VisionLanguageModel(self.config)
        model.vision = reparameterized(self.vision)
        model.projector, model.text = self.projector, self.text
        return model.eval()


class Encoder(nn.Module):
    """The graph `encoder`: image (1, 3, S, S) -> features (1, T, hidden_size)."""

    def __init__(self, model: VisionLanguageModel):
        super().__init__()
        self.vision, self.projector = model.vision, model.projector

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.projector(self.vision(image))


class Decoder(nn.Module):
    """The graph `decoder`: N tokens against the cache.

    input_ids (1, N) integer; image_features (1, N, hidden_size), row i used where input_ids[i] is the image token (a
    text model has none); position (1,) integer, of the first token; caches: key and value (1, KV, C, head_dim) of each
    layer in turn. Returns logits (1, N, vocab_size), or where `head` is False the normalised hidden states (1, N,
    hidden_size), and the new caches.
    """

    def __init__(self, model: VisionLanguageModel | LanguageModel, head: bool = True):
        super().__init__()
        assert model.config.text is not None
        self.text, self.image_token_id, self.head = model.text, model.config.image_token_id, head
        self.text_config = model.config.text

    def forward(
        self,
        input_ids: torch.Tensor,
        image_features: torch.Tensor | None,
        position: torch.Tensor,
        caches: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        embeddings = F.embedding(input_ids, self.text.embed_tokens.weight)
        if image_features is not None:
            is_image = (input_ids == self.image_token_id).unsqueeze(-1)
            embeddings = torch.where(is_image, image_features, embeddings)
        context = CachedContext(position, caches, self.text_config)
        hidden = self.text.hidden(embeddings, context)
        return (self.text.head(hidden) if self.head else hidden), context.caches
