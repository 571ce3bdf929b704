"""Qwen2's part of a checkpoint: the keys of its config.json, and its tensors."""

from pathlib import Path
from typing import Any

from pipelines.errors import CheckpointError
from stages.models.layouts.tensors import Tensors
from stages.models.layouts.weights import WeightFiles
from stages.models.qwen2 import TextConfig

# Qwen2Config's own defaults: transformers leaves out of config.json what equals them.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def text_config(values: dict[str, Any], path: Path, section: str = "") -> dict[str, Any]:
    """TextConfig's fields as the keys of a Qwen2 config.json say, unchecked.

    section: prefix of the keys, for messages. Raises CheckpointError for a variant of Qwen2 that is not supported.
    """
    _refuse_variants(values, path, section)
    if missing := [section + key for key in _REQUIRED if key not in values]:
        raise CheckpointError(f"{path}: missing {', '.join(missing)}", hint="Copy these from the model's own source.")
    found = {key: values.get(key, default) for key, default in _DEFAULTS.items()}
    for key in ("rope_scaling", "rope_parameters"):  # the older and the newer name
        if isinstance(rope := values.get(key), dict):
            found["rope_theta"] = rope.get("rope_theta", found["rope_theta"])
    if values.get("head_dim"):
        found["head_dim"] = values["head_dim"]
    if found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = found["num_attention_heads"]
    for key in ("rope_theta", "rms_norm_eps"):
        if type(found[key]) is int:
            found[key] = float(found[key])
    return found


def add_text(tensors: Tensors, config: TextConfig, body: str, head: str) -> None:
    """Say where each tensor of the decoder comes from. body, head: prefix of its layers, and name of its head."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, shared = config.query_width, config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (shared, hidden),
        "self_attn.k_proj.bias": (shared,),
        "self_attn.v_proj.weight": (shared, hidden),
        "self_attn.v_proj.bias": (shared,),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    tensors.store("text.embed_tokens.weight", f"{body}embed_tokens.weight", (config.vocab_size, hidden))
    for layer in range(config.num_hidden_layers):
        for name, shape in shapes.items():
            tensors.store(f"text.layers.{layer}.{name}", f"{body}layers.{layer}.{name}", shape)
    tensors.store("text.norm.weight", f"{body}norm.weight", (hidden,))
    if not config.tie_word_embeddings:
        tensors.store("text.lm_head.weight", head, (config.vocab_size, hidden))


def shares_head(weights: WeightFiles, embeddings: str, head: str) -> bool:
    """Whether the checkpoint stores the embedding a second time as its output head, as some savers do.

    A head that is stored and differs is the model's own, whatever config.json says of tying; so transformers has it.
    """
    if head not in weights or embeddings not in weights:
        return head not in weights
    first, second = weights.entries[embeddings], weights.entries[head]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    pairs = zip(weights.pieces(embeddings), weights.pieces(head), strict=True)
    return all(bytes(one) == bytes(two) for one, two in pairs)


def _refuse_variants(values: dict[str, Any], path: Path, section: str) -> None:
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    refused = {
        "hidden_act": (values.get("hidden_act", "silu"), "silu"),
        "rope_scaling": (kind, "default"),
        "use_sliding_window": (values.get("use_sliding_window", False), False),
        "quantization_config": (values.get("quantization_config") or values.get("quantization"), None),
    }
    for key, (found, expected) in refused.items():
        if found != expected:
            raise CheckpointError(
                f"{path}: {section}{key} is {found!r}; only {expected!r} can be built",
                hint="Take the model's original, unquantized weights."
                if key == "quantization_config"
                else "This variant of Qwen2 is not supported; choose a checkpoint without it.",
            )
