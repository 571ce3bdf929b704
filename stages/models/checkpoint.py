"""Checkpoints from outside: every file is checked before anything long begins, and nothing in them is ever executed.

A checkpoint is a folder with model.safetensors, config.json, tokenizer.json and preprocessing.json. Each mistake is one
CheckpointError that says what was found where, what was expected, and what to do.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import CheckpointError, nearest
from stages.models.description import check_config, check_preprocessing, check_tokenizer, read_object
from stages.models.vlm import ModelConfig, VisionLanguageModel
from stages.tensorfile import TensorEntry, TensorReader, TensorWriter, copy_file, read_header

WEIGHTS, CONFIG, TOKENIZER, PREPROCESSING = "model.safetensors", "config.json", "tokenizer.json", "preprocessing.json"
DTYPES = ("F16", "F32")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CHUNK = 1 << 24  # values checked at a time
_LISTED = 5


@dataclass(frozen=True)
class CheckedCheckpoint:
    """A folder whose every file is sound. `names`: the model's tensors, sorted."""

    path: Path
    config: ModelConfig
    preprocessing: dict[str, Any]
    names: list[str]


def read_checkpoint(path: Path, progress: Callable[[float, float, str], None] | None = None) -> CheckedCheckpoint:
    """Check the checkpoint in the folder path: small files first, then names and shapes, then every value.

    Raises CheckpointError at the first file that is wrong, with all that is wrong with its tensors.
    """
    _check_folder(path)
    config = check_config(read_object(path / CONFIG), path / CONFIG)
    entries = read_header(path / WEIGHTS, CheckpointError)
    _check_tensors(path / WEIGHTS, entries, config)
    preprocessing = read_object(path / PREPROCESSING)
    check_preprocessing(preprocessing, config, path / PREPROCESSING)
    check_tokenizer(path / TOKENIZER, config, preprocessing)
    _check_values(path / WEIGHTS, progress or (lambda done, total, text: None))
    return CheckedCheckpoint(path, config, preprocessing, sorted(entries))


def write_checkpoint(source: CheckedCheckpoint, out: Path) -> None:
    """Write the same checkpoint into folder out, in bytes that depend on its contents alone; values stay as stored."""
    reader = TensorReader(source.path / WEIGHTS, CheckpointError)
    with TensorWriter(out / WEIGHTS) as writer:
        for name in source.names:
            writer.add(name, reader.array(name))
    _write_json(out / CONFIG, source.config.to_dict())
    _write_json(out / PREPROCESSING, source.preprocessing)
    copy_file(source.path / TOKENIZER, out / TOKENIZER)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a model of this configuration has, by name; no memory is taken."""
    with torch.device("meta"):
        model = VisionLanguageModel(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_folder(path: Path) -> None:
    if not path.exists():
        parent = path.parent
        others = sorted(other.name for other in parent.iterdir() if other.is_dir()) if parent.is_dir() else []
        where = nearest(path.name, others) if parent.is_dir() else f"The folder {parent} does not exist either."
        raise CheckpointError(
            f"there is no checkpoint at {path}",
            hint=f"{where} Set model.path to a folder with {WEIGHTS}, {CONFIG}, {TOKENIZER}, {PREPROCESSING}.".strip(),
        )
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file; expected a folder with {WEIGHTS}, {CONFIG}, {TOKENIZER} and {PREPROCESSING}",
            hint=f"Set model.path={path.parent}",
        )
    for name in (CONFIG, WEIGHTS, TOKENIZER, PREPROCESSING):
        if not (path / name).is_file():
            raise CheckpointError(f"{name} is missing in {path}", hint=_hint_for_missing(path, name))


def _hint_for_missing(path: Path, name: str) -> str:
    found = sorted(file.name for file in path.iterdir() if file.is_file())
    pickles = [file for file in found if file.endswith(_PICKLES)]
    if name == WEIGHTS and pickles:
        return (
            f"{pickles[0]} may be a Python pickle, which can run any code, so it was not opened. If you trust it, "
            f"convert it with safetensors.torch.save_file(torch.load('{pickles[0]}', weights_only=True), '{WEIGHTS}')."
        )
    if name == WEIGHTS and (shards := [file for file in found if file.endswith(".safetensors")]):
        return f"Found {_listed(shards)}: name a single file {WEIGHTS}, and join several into one."
    close = nearest(name, [file for file in found if file not in (CONFIG, WEIGHTS, TOKENIZER, PREPROCESSING)])
    return " ".join(filter(None, [close, f"Found {_listed(found) or 'an empty folder'}."]))


def _check_tensors(path: Path, entries: dict[str, TensorEntry], config: ModelConfig) -> None:
    expected = expected_shapes(config)
    missing, unexpected = sorted(expected.keys() - entries.keys()), sorted(entries.keys() - expected.keys())
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_listed(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {_listed(unexpected)}")
    both = sorted(expected.keys() & entries.keys())
    shapes = [
        f"{name} (expected {list(expected[name])}, found {list(entries[name].shape)})"
        for name in both
        if expected[name] != entries[name].shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} of another shape: {_listed(shapes)}")
    dtypes = [f"{name} (found {entries[name].dtype})" for name in both if entries[name].dtype not in DTYPES]
    if dtypes:
        problems.append(f"{len(dtypes)} neither float16 nor float32: {_listed(dtypes)}")
    if problems:
        raise CheckpointError(
            f"{path} does not hold the tensors of its {CONFIG}; " + "; ".join(problems),
            hint=_hint_for_tensors(missing, unexpected, shapes, dtypes),
        )


def _hint_for_tensors(missing: list[str], unexpected: list[str], shapes: list[str], dtypes: list[str]) -> str:
    if unexpected == ["text.lm_head.weight"] and not missing:
        return "The model has an output head of its own: set text.tie_word_embeddings to false in config.json."
    if missing == ["text.lm_head.weight"] and not unexpected:
        return "Without an output head of its own: set text.tie_word_embeddings to true in config.json."
    if missing and unexpected:
        close = nearest(unexpected[0], missing)
        renamed = f"'{unexpected[0]}': {close} " if close else ""
        return renamed + "Tensors are named vision.*, projector.* and text.*, with the tower reparameterised."
    if shapes:
        return f"Sizes are read from {CONFIG}: correct it, or take the weights that belong to it."
    if dtypes:
        return "Save the tensors anew with tensor.to(torch.float16), or torch.float32 where values exceed 65,504."
    return f"Complete the file, or correct {CONFIG} (text.num_hidden_layers, vision.depths)."


def _check_values(path: Path, progress: Callable[[float, float, str], None]) -> None:
    reader = TensorReader(path, CheckpointError)
    bad = []
    for index, name in enumerate(sorted(reader.entries)):
        progress(index, len(reader.entries), name)
        count, first = _count_not_finite(reader.array(name).reshape(-1))
        if count:
            shape = reader.entries[name].shape
            position = [int(axis) for axis in np.unravel_index(first, shape)] if shape else []
            bad.append(f"{name} ({count:,} of {reader.array(name).size:,} values, the first at {position})")
    if bad:
        raise CheckpointError(
            f"{path} holds NaN or infinite values in {len(bad)} tensors: {_listed(bad)}",
            hint="Training diverged, or a cast to float16 overflowed at 65,504: export a sound checkpoint again.",
        )


def _count_not_finite(values: NDArray[Any]) -> tuple[int, int]:
    """How many values are NaN or infinite, and the index of the first."""
    count, first = 0, -1
    for start in range(0, values.size, _CHUNK):
        bad = np.flatnonzero(~np.isfinite(values[start : start + _CHUNK]))
        if bad.size and first < 0:
            first = start + int(bad[0])
        count += bad.size
    return count, first


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
