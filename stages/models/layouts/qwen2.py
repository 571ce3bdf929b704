"""A plain Qwen2 language model, as transformers' Qwen2ForCausalLM saves it."""

from pathlib import Path
from typing import Any

from stages.models.layouts.layout import Layout
from stages.models.layouts.tensors import Contents
from stages.models.layouts.text import text_config
from stages.models.layouts.weights import WeightFiles

MODEL_TYPE = "qwen2"
LAYOUT = Layout(tower=None, body="model.", head="lm_head.weight")


def read(path: Path, values: dict[str, Any]) -> Contents:
    """The checkpoint whose config.json, `values`, lies at path. Raises CheckpointError."""
    text = text_config(values, path)
    return LAYOUT.contents(path, values, WeightFiles(path.parent), text)
