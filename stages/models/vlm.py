"""The vision-language model: tower, two-layer projector, decoder; and the two graphs that a device runs."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from stages.models.fastvit import FastViT, VisionConfig, reparameterized
from stages.models.qwen2 import CachedContext, Qwen2, TextConfig


@dataclass(frozen=True)
class ModelConfig:
    """config.json of a checkpoint. image_token_id stands, once for each visual token, where the image goes."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        vision = {key: _tupled(value) for key, value in values["vision"].items()}
        return cls(VisionConfig(**vision), TextConfig(**values["text"]), int(values["image_token_id"]))

    def to_dict(self) -> dict[str, Any]:
        return {"architecture": "fastvlm", **asdict(self)}


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


class VisionLanguageModel(nn.Module):
    """FastVLM's architecture (arXiv:2412.13303) at any size. `trainable` chooses the tower's form (see fastvit)."""

    def __init__(self, config: ModelConfig, trainable: bool = False):
        super().__init__()
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

    input_ids (1, N) integer; image_features (1, N, hidden_size), row i used where input_ids[i] is the image token;
    position (1,) integer, of the first token; caches: key and value (1, KV, C, head_dim) of each layer in turn.
    Returns logits (1, N, vocab_size) and the new caches.
    """

    def __init__(self, model: VisionLanguageModel):
        super().__init__()
        self.config, self.text = model.config, model.text

    def forward(
        self,
        input_ids: torch.Tensor,
        image_features: torch.Tensor,
        position: torch.Tensor,
        caches: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        is_image = (input_ids == self.config.image_token_id).unsqueeze(-1)
        embeddings = torch.where(is_image, image_features, F.embedding(input_ids, self.text.embed_tokens.weight))
        context = CachedContext(position, caches, self.config.text)
        return self.text(embeddings, context), context.caches
