"""Writes a checkpoint of random weights in a layout, from the names and shapes that the layout reads."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.errors import ConfigError
from stages.models.layouts import apple, qwen2, transformers
from stages.models.layouts.layout import Layout
from stages.models.layouts.new_files import write_description
from stages.models.layouts.random import Spread, chunks, code, spreads
from stages.models.layouts.tensors import NORM_PARTS, Shape
from stages.models.layouts.weights import INDEX, WEIGHTS
from stages.models.vlm import ModelConfig
from stages.tensorfile import ITEM_SIZES, PlannedWriter

LAYOUTS: Mapping[str, Layout] = {
    "apple": apple.LAYOUT,
    "transformers": transformers.LAYOUT,
    "qwen2": qwen2.LAYOUT,
}
HEAD_CLASSES = 1000  # of the unused classifier that Apple's tower carries


def write_random(
    out: Path,
    config: ModelConfig,
    layout: str,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    shards: int = 1,
    trained: bool = False,
) -> None:
    """A checkpoint of this configuration in the folder out, in a layout of LAYOUTS; trained: its tower with branches.

    It appears whole or not at all. Raises ConfigError where out is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} is there already, and is not an empty folder", hint="remove it, or give another --out"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_weights(partial, _plan(config, layout, dtype, trained), seed, dtype, shards)
        write_description(partial, config, layout, dtype)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class _Planned:
    """A tensor of the checkpoint: its dtype as safetensors names it, its shape, and how its values are spread (None:
    zero)."""

    dtype: str
    shape: Shape
    spread: Spread | None
    name: str


def _plan(config: ModelConfig, layout: str, dtype: str, trained: bool) -> list[_Planned]:
    assert config.text is not None
    names = LAYOUTS[layout]
    tensors = names.tensors(config, (), trained)
    spread = spreads(tensors, config.text.num_hidden_layers)
    shapes = tensors.expected()
    planned = [_Planned(code(dtype), shape, spread[name], name) for name, shape in shapes.items()]
    counted = f".{NORM_PARTS[-1]}"
    planned += [
        _Planned("I64", (), None, name.removesuffix(counted) + ".num_batches_tracked")
        for name in shapes
        if name.endswith(counted)
    ]
    if layout == "apple" and config.vision:
        head = names.unused[0]
        width = config.vision.output_width
        planned.append(_Planned(code(dtype), (HEAD_CLASSES, width), Spread(0, 0.02), f"{head}weight"))
        planned.append(_Planned(code(dtype), (HEAD_CLASSES,), Spread(0, 0.02), f"{head}bias"))
    if layout == "transformers" and config.text.tie_word_embeddings:  # its state_dict has the shared head twice
        embedding = f"{names.body}embed_tokens.weight"
        shared = replace(spread[embedding], like=embedding)
        planned.append(_Planned(code(dtype), shapes[embedding], shared, names.head))
    return planned


def _write_weights(out: Path, planned: list[_Planned], seed: int, dtype: str, shards: int) -> None:
    sizes = [math.prod(each.shape) * ITEM_SIZES[each.dtype] for each in planned]
    target, filled = sum(sizes) / shards, 0
    files: dict[str, list[_Planned]] = {}
    for each, size in zip(planned, sizes, strict=True):
        number = min(shards, int(filled / target) + 1)
        file = WEIGHTS if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"
        files.setdefault(file, []).append(each)
        filled += size
    if len(files) < shards:
        raise ConfigError(f"the model's tensors do not fill {shards} shards", hint=f"give --shards {len(files)}")
    for file, members in files.items():
        by_name = {each.name: each for each in members}
        with PlannedWriter(out / file, {each.name: (each.dtype, each.shape) for each in members}) as writer:
            for name in writer.order():
                _write(writer, by_name[name], seed, dtype)
    if shards > 1:
        places = {each.name: file for file, members in files.items() for each in members}
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
        (out / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write(writer: PlannedWriter, tensor: _Planned, seed: int, dtype: str) -> None:
    if tensor.spread is None:
        writer.write(tensor.name, np.zeros(tensor.shape, np.int64).tobytes())
        return
    for piece in chunks(seed, tensor.name, tensor.shape, tensor.spread, dtype):
        writer.write(tensor.name, piece)
