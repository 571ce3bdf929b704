"""A whole model from what a peer made of some weights: its values, and its bytes in one file."""

import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch

from quantization.packed import Array, Packed, flat
from quantization.subject import checkpoint, kinds
from stages.quantizers.rtn import round_to_nearest


class Basis(Enum):
    """same: every peer's method on the same matrices, all else equal for all. whole: what the peer does with the whole
    model by itself; what it leaves float is float16."""

    same = "same"
    whole = "whole"


@dataclass(frozen=True)
class Assembled:
    """state: float32, by name. bytes: of a safetensors file with every array as the peer packs it, and no more."""

    state: dict[str, torch.Tensor]
    bytes: int


def assembled(packed: Packed, basis: Basis) -> Assembled:
    """The reference model with a peer's weights. On `same`, embeddings, head and the tower's other convolutions have 8
    bits and a scale a row, as ours have them."""
    model = checkpoint().model()
    kind = kinds(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if basis is Basis.same:
        chosen = {name for name in packed.dense if name not in kind.common}
    else:
        chosen = {name for name in packed.dense if name in packed.native or "float" in packed.parts[name]}
    arrays: dict[str, Array] = flat(packed.parts, sorted(chosen))
    for name in state:
        if name in chosen:
            state[name] = torch.from_numpy(packed.dense[name].reshape(state[name].shape))
        elif basis is Basis.same and name in kind.common:
            rows = state[name].flatten(1)
            rounded = round_to_nearest(rows, 8, rows.shape[1], symmetric=True)
            codes, scales = rounded.arrays()[:2]
            arrays |= {f"{name}:codes": codes, f"{name}:scales": scales}
            state[name] = rounded.dense().reshape(state[name].shape)
        else:
            arrays[f"{name}:float"] = state[name].numpy().astype(np.float16)
    return Assembled(state, _size(arrays))


def _size(arrays: dict[str, Array]) -> int:
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        save_file(arrays, path)
        return path.stat().st_size
