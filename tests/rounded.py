"""A toy checkpoint rounded to nearest, without the stages that would choose better: for tests of what comes after."""

import shutil
from pathlib import Path

from stages.artifacts import Checkpoint, QuantizedModel
from stages.quantizers.rtn import round_to_nearest
from stages.quantizers.store import StoreWriter


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
