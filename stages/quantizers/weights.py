"""A checkpoint's quantizable weights as any choice makes them: dense values, exact bytes, Fisher scores."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from stages.artifacts import Calibration, Checkpoint
from stages.quantizers.candidates import label
from stages.quantizers.choices import Choice, Role
from stages.quantizers.formats import TensorFormat
from stages.quantizers.layers import Layer, quantizable_layers, spatial_layers
from stages.quantizers.methods import Result, quantized
from stages.quantizers.model import add_result
from stages.quantizers.scores import Scores
from stages.quantizers.statistics import StatisticsReader
from stages.quantizers.store import QuantizedStore, StoreWriter
from stages.schema import Format, QuantizeConfig

_FLOAT16_LIMIT = 65504.0


def bytes_of(choice: Choice, shape: tuple[int, ...], float_bytes: int = 2) -> int:
    """What the store takes for a weight of that shape. float_bytes: of each number, where it stays float.

    choice: fitted and dense.
    """
    if not choice.bits:
        return TensorFormat("float", shape, 0, dtype=f"float{8 * float_bytes}").packed_bytes()
    if choice.format is Format.affine:
        form = TensorFormat(
            "affine", shape, 0, bits=choice.bits, group_size=choice.group_size, symmetric=choice.symmetric
        )
        return form.packed_bytes()
    size = 0 if choice.group_size == shape[0] else choice.group_size
    form = TensorFormat(
        "palette",
        shape,
        0,
        bits=choice.bits,
        group_size=size,
        vector=choice.vector,
        channel_scale=choice.channel_scale,
    )
    return form.packed_bytes()


class Weights:
    """A checkpoint's quantizable weights as any choice makes them: results are kept where `keep` is set."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibration: Calibration,
        settings: QuantizeConfig,
        keep: bool = True,
        made: Path | None = None,
    ) -> None:
        """made: a folder that `write` wrote, with the same settings."""
        with torch.device("meta"):
            model: Any = checkpoint.config().build()
        self.layers = {**quantizable_layers(model), **spatial_layers(model)}
        self._statistics = StatisticsReader(calibration.statistics)
        self.scores = Scores(self._statistics, self.layers)
        self._settings, self._keep = settings, keep
        self._results: dict[tuple[str, Choice], Result] = {}
        self._made = QuantizedStore.open(made) if made else None
        self._stored = set(self._made.names()) if self._made else set()
        with checkpoint.tensors() as tensors:
            self._tensors = tensors
            sizes = {name: _float_size(tensors[name]) for name in tensors}
            self.parameters = sum(tensors[name].numel() for name in tensors)
            self.other_bytes = sum(sizes[name] * tensors[name].numel() for name in tensors if name not in self.layers)
        self._float_sizes = {name: sizes[name] for name in self.layers}

    def full(self, name: str) -> torch.Tensor:
        """float32 (out, in)."""
        return self._tensors[name].float().flatten(1)

    def dense(self, name: str, choice: Choice) -> torch.Tensor:
        """float32 (out, in), as the store will give it."""
        if not choice.bits and not choice.sparse:
            return self.full(name)
        if (name, choice) in self._results:
            return self._results[name, choice].dense()
        key = _key(name, choice)
        if self._made and key in self._stored:
            return torch.from_numpy(self._made.dense(key)).flatten(1)
        made = quantized(name, self.full(name), self.layers[name], choice, self._statistics, self._settings)
        if self._keep:
            self._results[name, choice] = made
        return made.dense()

    def write(self, out: Path, chosen: Iterable[tuple[str, Choice]]) -> None:
        """Those results as a store, so that none need be made again."""
        with StoreWriter(out) as writer:
            for name, choice in chosen:
                self.dense(name, choice)
                add_result(writer, _key(name, choice), self.layers[name], choice, self._results[name, choice])

    def score(self, name: str, choice: Choice) -> float:
        return self.scores.of(name, self.full(name) - self.dense(name, choice)) if choice.bits else 0.0

    def bytes(self, name: str, choice: Choice) -> int:
        return bytes_of(choice, self.layers[name].shape, self._float_sizes[name])

    def shapes(self) -> dict[str, tuple[Role, tuple[int, ...]]]:
        return {name: (layer.role, layer.shape) for name, layer in self.layers.items()}

    def groups(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, layer in self.layers.items():
            found.setdefault(_group(name, layer), []).append(name)
        return found


def _key(name: str, choice: Choice) -> str:
    return f"{name} {label(choice)}{' symmetric' * choice.symmetric}"


def _group(name: str, layer: Layer) -> str:
    """Layers of one kind: `text mlp`, `vision ffn`, `projector`."""
    if layer.role in (Role.embeddings, Role.head):
        return {Role.embeddings: "embeddings", Role.head: "output head"}[layer.role]
    if layer.role is Role.spatial:
        return "spatial convolutions"
    parts = [part for part in name.split(".")[:-2] if not part.isdigit()]
    return " ".join(dict.fromkeys((parts[0], parts[-1]))) if parts else name


def _float_size(tensor: torch.Tensor) -> int:
    """Bytes of each number in the store, where the tensor stays float."""
    small = tensor.is_floating_point() and (not tensor.numel() or float(tensor.abs().max()) <= _FLOAT16_LIMIT)
    return 2 if small else 4
