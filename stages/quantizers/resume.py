"""Weights that a run before this one has finished, so that after a kill no weight is computed twice."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stages.quantizers.results import Affine, Float, Palette
from stages.tensorfile import TensorReader, TensorWriter

Result = Affine | Float | Palette
_KINDS = {"scales": Affine, "palette": Palette, "weight": Float}  # by a field that only it has


class Finished:
    """Results by weight name, a file each under `folder`, which is a workspace's scratch or lies in it.

    A file appears when it is whole. The scratch is keyed like the node: results never meet another configuration.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def get(self, name: str) -> Result | None:
        """The very result that was kept, or None."""
        if name not in self:
            return None
        reader = TensorReader(self._path(name))
        fields: dict[str, torch.Tensor] = {key: torch.from_numpy(np.array(reader.array(key))) for key in reader.entries}
        kind = next(kind for field, kind in _KINDS.items() if field in fields)
        if "mask" in fields:
            fields["mask"] = fields["mask"].bool()
        if kind is Palette:
            return Palette(**{**fields, "group_size": int(fields["group_size"])})  # type: ignore[arg-type]
        found: Result = kind(**fields)
        return found

    def keep(self, name: str, result: Result) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with TensorWriter(self._path(name)) as writer:
            for key, value in vars(result).items():
                if value is not None:
                    writer.add(key, _array(value))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _array(value: torch.Tensor | int) -> NDArray[np.generic]:
    if isinstance(value, int):
        return np.array([value], np.int32)
    return (value.to(torch.uint8) if value.dtype == torch.bool else value).numpy()
