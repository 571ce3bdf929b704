"""Qwen2's decoder (arXiv:2407.10671): grouped-query attention with QKV bias, rotary positions, RMSNorm, SwiGLU."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from stages.models.ops import cached_attention, rotary, rotary_angles, rotate


@dataclass(frozen=True)
class TextConfig:
    """The shape of a Qwen2 decoder, in the words of its config.json.

    head_dim: of a head, even; what is not given is hidden_size / num_attention_heads. It is given where heads were
    pruned: the others keep their width, and `replace` keeps it. head_rank: the output head is a product of two
    matrices of this inner size (None: one matrix); an embedding that is shared with the head has none.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    head_dim: int = 0
    head_rank: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)

    @property
    def query_width(self) -> int:
        """Of all query heads together: rows of q_proj, columns of o_proj."""
        return self.num_attention_heads * self.head_dim

    @property
    def head_weights(self) -> tuple[str, ...]:
        """Names in a checkpoint of what the last hidden states are multiplied by, in order, to give logits."""
        if self.tie_word_embeddings:
            return ("text.embed_tokens.weight",)
        whole = ("text.lm_head.weight",)
        return whole if self.head_rank is None else ("text.lm_head.down.weight", "text.lm_head.up.weight")

    def to_dict(self) -> dict[str, Any]:
        """Without the keys that are as they would be if they were not given."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        if self.query_width == self.hidden_size:
            del values["head_dim"]
        return values


class AttentionContext(Protocol):
    """How a decoder pass attends: whole sequences under a mask, or new tokens against a cache."""

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Give x (B, H, N, head_dim) its rotary positions."""
        ...

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query (B, H, N, head_dim), key and value (B, KV, N, head_dim) -> (B, H, N, head_dim)."""
        ...


class MaskedContext:
    """Teacher forcing: N tokens at once. positions: (N,) integers; mask: (N, N) or (B, 1, N, N) bool, True: visible."""

    def __init__(self, positions: torch.Tensor, mask: torch.Tensor, config: TextConfig):
        self.cosines, self.sines = rotary_angles(positions, config.head_dim, config.rope_theta)
        self.mask = mask

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        return rotate(x, self.cosines, self.sines)

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)


class CachedContext:
    """Generation: N new tokens from position[0] on, against caches (B, KV, C, head_dim), one pair a layer.

    After the pass `caches` holds the new caches, in the same order.
    """

    def __init__(self, position: torch.Tensor, caches: Sequence[torch.Tensor], config: TextConfig):
        self.position, self.caches, self.theta = position, list(caches), config.rope_theta

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        return rotary(x, self.position, self.theta)

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        pair = slice(2 * layer, 2 * layer + 2)
        output, *self.caches[pair] = cached_attention(query, key, value, *self.caches[pair], self.position)
        return output


class Attention(nn.Module):
    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        width = config.num_key_value_heads * config.head_dim
        self.layer, self.head_dim = layer, config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.query_width)
        self.k_proj = nn.Linear(config.hidden_size, width)
        self.v_proj = nn.Linear(config.hidden_size, width)
        self.o_proj = nn.Linear(config.query_width, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        batch, count, _ = x.shape
        query, key, value = (
            projection(x).view(batch, count, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        output = context.attend(self.layer, context.rotate(query), context.rotate(key), value)
        return self.o_proj(output.transpose(1, 2).reshape(batch, count, self.o_proj.in_features))


class FeedForward(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), context)
        return x + self.mlp(self.post_attention_layernorm(x))


class LowRankHead(nn.Module):
    """An output head of rank head_rank: hidden states (B, N, hidden_size) -> (B, N, head_rank) -> logits."""

    def __init__(self, config: TextConfig):
        super().__init__()
        assert config.head_rank is not None
        self.down = nn.Linear(config.hidden_size, config.head_rank, bias=False)
        self.up = nn.Linear(config.head_rank, config.vocab_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(hidden))


class Qwen2(nn.Module):
    """Embeddings (B, N, hidden_size) in, logits (B, N, vocab_size) out; how tokens attend is the context's."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if not config.tie_word_embeddings:
            whole = config.head_rank is None
            self.lm_head = (
                nn.Linear(config.hidden_size, config.vocab_size, bias=False) if whole else LowRankHead(config)
            )

    def hidden(self, embeddings: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """The normalised last hidden states, (B, N, hidden_size)."""
        for layer in self.layers:
            embeddings = layer(embeddings, context)
        return self.norm(embeddings)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.embed_tokens.weight) if self.config.tie_word_embeddings else self.lm_head(hidden)

    def forward(self, embeddings: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        return self.head(self.hidden(embeddings, context))
