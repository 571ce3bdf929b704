"""Tapeout's own layout, which `load` writes: names as the torch model's, the tower deployed."""

from pathlib import Path
from typing import Any

import torch

from pipelines.errors import CheckpointError, nearest
from stages.models.description import check_config, check_preprocessing, check_tokenizer, parse_tokenizer, read_object
from stages.models.layouts.tensors import Contents, Tensors, check_tensors
from stages.models.layouts.weights import WeightFiles, listed
from stages.models.vlm import ModelConfig

TOKENIZER, PREPROCESSING = "tokenizer.json", "preprocessing.json"
_HEAD = "text.lm_head.weight"


def read(path: Path, values: dict[str, Any]) -> Contents:
    """The checkpoint whose config.json, `values`, lies at path. Raises CheckpointError."""
    folder = path.parent
    config = check_config(values, path)
    weights = WeightFiles(folder)
    tied = config.text is not None and config.text.tie_word_embeddings
    hint = f"The model has an output head of its own: set text.tie_word_embeddings to false in {path.name}."
    if not tied:
        hint = f"Without an output head of its own: set text.tie_word_embeddings to true in {path.name}."
    tensors = tensors_of(config)
    check_tensors(weights, tensors, {_HEAD: hint}, integers=config.module is not None)
    if config.module:
        return Contents(config, None, None, weights, tensors)
    for name in (PREPROCESSING, TOKENIZER):
        if not (folder / name).is_file():
            raise CheckpointError(f"{name} is missing in {folder}", hint=_found(folder, name))
    preprocessing = read_object(folder / PREPROCESSING)
    if config.vision:
        preprocessing.setdefault("resample", "bilinear")  # all that there was before the key
    check_preprocessing(preprocessing, config, folder / PREPROCESSING)
    tokenizer = (folder / TOKENIZER).read_bytes()
    path = folder / TOKENIZER
    check_tokenizer(parse_tokenizer(tokenizer, path), path, config, preprocessing)
    return Contents(config, preprocessing, tokenizer, weights, tensors)


def tensors_of(config: ModelConfig) -> Tensors:
    """The tensors of a model of this configuration, each from one of its own name; no memory is taken."""
    tensors = Tensors(unused=())
    for name, shape in expected_shapes(config).items():
        tensors.store(name, name, shape)
    return tensors


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = config.build()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _found(folder: Path, name: str) -> str:
    files = sorted(file.name for file in folder.iterdir() if file.is_file())
    close = nearest(name, [file for file in files if not file.endswith(".safetensors")])
    return " ".join(filter(None, [close, f"Found {listed(files) or 'an empty folder'}."]))
