"""Apple's releases of FastVLM (github.com/apple/ml-fastvlm): LLaVA's layout around Qwen2 and FastViTHD.

config.json: Qwen2's keys, and LLaVA's `mm_*` ones. The tower's size is in its tensors; its image size ends the name
mm_vision_tower ("mobileclip_l_1024"). Its head, a projection of the pooled image, has no part in image tokens.
"""

import re
from pathlib import Path
from typing import Any

from pipelines.errors import CheckpointError
from stages.models.layouts import tower
from stages.models.layouts.layout import Layout, require
from stages.models.layouts.pixels import apple_pixels, refuse_tiles
from stages.models.layouts.tensors import Contents
from stages.models.layouts.text import text_config
from stages.models.layouts.weights import WeightFiles

MODEL_TYPE = "llava_qwen2"
IMAGE_TOKEN = "<image>"  # LLaVA's own, wherever its code builds a prompt
LAYOUT = Layout(
    tower=tower.APPLE,
    body="model.",
    head="lm_head.weight",
    projector=("model.mm_projector.0", "model.mm_projector.2"),
    unused=(f"{tower.APPLE.root}head.",),
)


def read(path: Path, values: dict[str, Any]) -> Contents:
    """The checkpoint whose config.json, `values`, lies at path. Raises CheckpointError."""
    refuse_tiles(values, path)
    require(values, path, "mm_projector_type", "mlp2x_gelu", default="mlp2x_gelu")
    require(values, path, "mm_use_im_start_end", False, default=False)
    size, text = _image_size(values, path), text_config(values, path)
    weights = WeightFiles(path.parent)
    vision = tower.describe({name: entry.shape for name, entry in weights.entries.items()}, tower.APPLE, size)
    require(values, path, "mm_hidden_size", vision.output_width, default=vision.output_width)
    return LAYOUT.contents(path, values, weights, text, vision, apple_pixels(values, size), IMAGE_TOKEN)


def _image_size(values: dict[str, Any], path: Path) -> int:
    """The side of the tower's square input in pixels."""
    name = values.get("mm_vision_tower")
    found = re.fullmatch(r"mobileclip_l_(\d+)", name) if isinstance(name, str) else None
    if found is None:
        raise CheckpointError(
            f"{path}: mm_vision_tower is {name!r}; expected 'mobileclip_l_' and the image size, as mobileclip_l_1024",
            hint="Only FastVLM's own tower, FastViTHD, can be built.",
        )
    return int(found[1])
