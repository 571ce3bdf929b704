"""transformers' fast_vlm: timm's fastvit_mci3 as the tower, a projector of two linears, Qwen2 as the language model.

config.json: text_config has Qwen2's keys, vision_config timm's; image_token_index is the image's token. The image size
is in preprocessor_config.json.
"""

from pathlib import Path
from typing import Any

from stages.models.layouts import tower
from stages.models.layouts.layout import Layout, require
from stages.models.layouts.pixels import processor_pixels, refuse_tiles
from stages.models.layouts.tensors import Contents
from stages.models.layouts.text import text_config
from stages.models.layouts.weights import WeightFiles

MODEL_TYPE = "fast_vlm"
LAYOUT = Layout(
    tower=tower.TIMM,
    body="model.language_model.",
    head="lm_head.weight",
    projector=("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"),
    unused=(f"{tower.TIMM.root}head.",),
)
_IMAGE_TOKEN, _IMAGE_TOKEN_ID = "<image>", 151646  # FastVlmConfig's own default
_TEXT_DEFAULTS = {  # what FastVlmConfig takes without a text_config: the 7B
    "hidden_size": 3584,
    "vocab_size": 152128,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
}


def read(path: Path, values: dict[str, Any]) -> Contents:
    """The checkpoint whose config.json, `values`, lies at path. Raises CheckpointError."""
    refuse_tiles(values, path)
    for key, expected in (
        ("projector_hidden_act", "gelu"),
        ("multimodal_projector_bias", True),
        ("vision_feature_select_strategy", "full"),
        ("vision_feature_layer", -1),
    ):
        require(values, path, key, expected, default=expected)
    vision_values, text_values = values.get("vision_config") or {}, values.get("text_config") or _TEXT_DEFAULTS
    require(vision_values, path, "architecture", "fastvit_mci3", default="fastvit_mci3")
    require(text_values, path, "model_type", "qwen2", default="qwen2")
    text = text_config(text_values, path, "text_config.")
    text["tie_word_embeddings"] = bool(text["tie_word_embeddings"] or values.get("tie_word_embeddings", False))
    weights = WeightFiles(path.parent)
    pixels = processor_pixels(path.parent, values)
    shapes = {name: entry.shape for name, entry in weights.entries.items()}
    vision = tower.describe(shapes, tower.TIMM, pixels["image_size"])
    require(vision_values, path, "hidden_size", vision.output_width, default=vision.output_width)
    named = {"image_token_id": _IMAGE_TOKEN_ID, "eos_token_id": text_values.get("eos_token_id"), **values}
    return LAYOUT.contents(path, named, weights, text, vision, pixels, _IMAGE_TOKEN)
