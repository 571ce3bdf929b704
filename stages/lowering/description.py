"""model.json: what both runtimes' sessions and the apps read of a converted model."""

from typing import Any

from stages.models.vlm import ModelConfig


def describe(
    config: ModelConfig,
    *,
    runtime: str,
    suffix: str,
    context: int,
    prefill_chunk: int | None,
    functions: dict[str, Any],
) -> dict[str, Any]:
    """The content of model.json. prefill_chunk: tokens of a call of prefill, None: any number."""
    text = config.text
    return {
        "runtime": runtime,
        "files": {part: f"{part}.{suffix}" for part in ("encoder", "decoder")},
        "context": context,
        "prefill_chunk": prefill_chunk,
        "image_size": config.vision.image_size,
        "image_tokens": config.vision.tokens,
        "hidden": text.hidden_size,
        "layers": text.num_hidden_layers,
        "kv_heads": text.num_key_value_heads,
        "head_dim": text.head_dim,
        "vocab": text.vocab_size,
        "image_token_id": config.image_token_id,
        "functions": functions,
    }
