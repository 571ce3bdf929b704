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
    """The content of model.json. prefill_chunk: tokens of a call of prefill, None: any number.

    What a text model or a user's module does not have is left out.
    """
    description: dict[str, Any] = {
        "runtime": runtime,
        "files": {part: f"{part}.{suffix}" for part in _parts(config)},
        "functions": functions,
    }
    if config.vision:
        description |= {
            "image_size": config.vision.image_size,
            "image_tokens": config.vision.tokens,
            "image_token_id": config.image_token_id,
        }
    if config.text:
        text = config.text
        description |= {
            "context": context,
            "prefill_chunk": prefill_chunk,
            "hidden": text.hidden_size,
            "layers": text.num_hidden_layers,
            "kv_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "vocab": text.vocab_size,
        }
    return description


def _parts(config: ModelConfig) -> list[str]:
    if config.module:
        return ["main"]
    return ["encoder", "decoder"] if config.vision else ["decoder"]
