"""A subnet as an ordinary checkpoint, which knows nothing of the model that it was cut from."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.artifacts import Checkpoint
from stages.elastic.space import Architecture
from stages.search_artifacts import Supernet


def extract(supernet: Supernet, architecture: Architecture, like: Checkpoint, out: Path) -> Checkpoint:
    """Write the subnet into folder out, in the dtypes of `like`, the checkpoint that the supernet was made from."""
    config = supernet.space().configured(architecture)
    state = supernet.elastic().state(config)
    with like.tensors() as tensors:
        kinds = {name: tensors[name].dtype for name in tensors}
    default = next(iter(kinds.values()), torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: each.detach().to(kinds.get(name, default)).contiguous().clone() for name, each in state.items()},
        out / "model.safetensors",
    )
    result = Checkpoint(out)
    result.write_json("config.json", config.to_dict())
    like.copy_preprocessing(out)
    if config.vision is not None:
        result.write_json("preprocessing.json", {**like.preprocessing(), "image_size": config.vision.image_size})
    return result
