"""A toy checkpoint rounded to nearest, without the stages that would choose better: for tests of what comes after."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stages.artifacts import Checkpoint, QuantizedModel
from stages.quantizers.rtn import round_to_nearest
from stages.quantizers.store import StoreWriter
from stages.tensorfile import TensorReader


def rounded(
    checkpoint: Checkpoint,
    path: Path,
    *,
    bits: int = 4,
    embeddings: int = 8,
    convolutions: int = 8,
    group_size: int = 32,
    symmetric: bool = False,
) -> QuantizedModel:
    """bits 0 keeps float16. A group that does not divide a row becomes the whole row, in 8 bits."""
    path.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "preprocessing.json"):
        shutil.copyfile(checkpoint.path / name, path / name)
    with checkpoint.tensors() as tensors, StoreWriter(path) as store:
        for name in tensors:
            weight = tensors[name].float()
            matrix = weight.flatten(1) if weight.ndim > 1 else weight[None]
            width = embeddings if "embed_tokens" in name else convolutions if name.startswith("vision") else bits
            pointwise = weight.ndim == 2 or (weight.ndim == 4 and weight.shape[2:] == (1, 1))
            if not width or not pointwise:
                store.add_float(name, weight.half().numpy())
                continue
            columns = matrix.shape[1]
            group, width = (group_size, width) if group_size and columns % group_size == 0 else (columns, 8)
            codes, scales, points = round_to_nearest(matrix, width, group, symmetric).arrays()
            store.add_affine(name, tuple(weight.shape), width, codes, scales, None if symmetric else points)
    return QuantizedModel(path)


def edited(
    model: QuantizedModel, path: Path, tensor: str, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> QuantizedModel:
    """A copy of a quantized model at `path`, in whose file that tensor (LAYER.weight.scales) has other values."""
    shutil.copytree(model.path, path)
    file = path / "weights.safetensors"
    values = TensorReader(file).array(tensor)
    changed = change(values).astype(values.dtype).tobytes()
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    start, stop = json.loads(content[8 : 8 + length])[tensor]["data_offsets"]
    content[8 + length + start : 8 + length + stop] = changed
    file.write_bytes(content)
    return QuantizedModel(path)
