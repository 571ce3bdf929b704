"""Tapeout's own layout, which `load` writes: names as the torch model's, the tower deployed."""

from pathlib import Path
from typing import Any

import torch

from pipelines.errors import CheckpointError, nearest
from stages.models.description import check_config, check_preprocessing, check_tokenizer, parse_tokenizer, read_object
from stages.models.layouts.tensors import Contents, Tensors, check_tensors
from stages.models.layouts.weights import WeightFiles, listed
from stages.models.qwen2 import TextConfig
from stages.models.vlm import ModelConfig

TOKENIZER, PREPROCESSING = "tokenizer.json", "preprocessing.json"


def read(path: Path, values: dict[str, Any]) -> Contents:
    """The checkpoint whose config.json, `values`, lies at path. Raises CheckpointError."""
    folder = path.parent
    config = check_config(values, path)
    weights = WeightFiles(folder)
    tensors = tensors_of(config)
    check_tensors(weights, tensors, _head_hints(config.text, path.name), integers=config.module is not None)
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


def _head_hints(text: TextConfig | None, file: str) -> dict[str, str]:
    """What to do where the tensors of another kind of output head are there."""
    whole, *parts = "text.lm_head.weight", "text.lm_head.down.weight", "text.lm_head.up.weight"
    if text is None or text.tie_word_embeddings:
        own = "The model has an output head of its own: set text.tie_word_embeddings to false"
        return {
            whole: f"{own} in {file}.",
            **dict.fromkeys(parts, f"{own}, and text.head_rank to its rank, in {file}."),
        }
    if text.head_rank is not None:
        return dict.fromkeys((whole, *parts), f"The output head is one matrix: set text.head_rank to null in {file}.")
    tied = f"Without an output head of its own: set text.tie_word_embeddings to true in {file}."
    rank = f"The output head is two matrices: set text.head_rank in {file} to the rows of {parts[0]}."
    return {whole: tied, **dict.fromkeys(parts, rank)}


def _found(folder: Path, name: str) -> str:
    files = sorted(file.name for file in folder.iterdir() if file.is_file())
    close = nearest(name, [file for file in files if not file.endswith(".safetensors")])
    return " ".join(filter(None, [close, f"Found {listed(files) or 'an empty folder'}."]))
