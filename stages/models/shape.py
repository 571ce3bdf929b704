"""Whether a checkpoint is of the size that the configuration says."""

import json
from typing import Any

from pipelines.errors import CheckpointError
from stages.models.vlm import ModelConfig

# How a file stores the head, and which token stands for the image, is the checkpoint's business.
_FREE = {"text.tie_word_embeddings", "image_token_id"}


def check_shape(found: ModelConfig, expected: dict[str, Any] | None) -> None:
    """Raise CheckpointError where the checkpoint's configuration departs from model.shape, naming the first key.

    expected: config.json in Tapeout's own layout, or parts of it; None takes any.
    """
    if expected is None:
        return
    actual = _flat(json.loads(json.dumps(found.to_dict())))
    if found.text:  # keys that config.json may leave out
        actual |= {"text.head_dim": found.text.head_dim, "text.head_rank": found.text.head_rank}
    wanted = _flat(expected)
    wrong = [key for key, value in wanted.items() if key not in _FREE and actual.get(key) != value]
    if wrong:
        key = wrong[0]
        others = f" (and {len(wrong) - 1} more differ)" if wrong[1:] else ""
        raise CheckpointError(
            f"model.shape.{key} is {wanted[key]!r}, but the checkpoint's {key} is {actual.get(key)!r}{others}",
            hint="Choose the model of the checkpoint's size (model=NAME, conf/model/*.yaml), or set model.shape=null.",
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"text.hidden_size": 896} of nested objects; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
