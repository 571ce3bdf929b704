"""What of a checkpoint should reach a device unchanged, and how much did: the vocabulary, and the size of weights."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from stages.artifacts import Checkpoint, DeviceModel, QuantizedModel
from stages.quantizers.formats import TensorFormat

_BLOCK = 1 << 22  # values that are compared at a time
_ROUNDED = 2.0**-10  # of a float16: what is further from the checkpoint's has been changed on purpose


def vocabulary(checkpoint: Checkpoint, device_model: DeviceModel) -> float:
    """The share of the checkpoint's tokens that have the same number in the shipped tokenizer."""
    files = (str(each.path / "tokenizer.json") for each in (checkpoint, device_model))
    before, after = (Tokenizer.from_file(file).get_vocab(with_added_tokens=True) for file in files)
    return sum(after.get(token) == number for token, number in before.items()) / max(len(before), len(after))


@dataclass(frozen=True)
class Layer:
    """A weight as shipped. error: root mean square of its change, over the weight's own; scale: see scale_error."""

    name: str
    format: TensorFormat
    error: float
    scale: float

    def to_json(self) -> dict[str, Any]:
        form = self.format
        return {
            "format": form.format,
            "bits": form.bits or 8 * np.dtype(form.dtype).itemsize,
            "bytes": form.bytes,
            "parameters": form.size,
            "error": self.error,
            "scale_error": self.scale,
        }


def weights(checkpoint: Checkpoint, model: QuantizedModel) -> tuple[list[Layer], float]:
    """Each quantized weight against the checkpoint's, and the share of the other tensors that are the checkpoint's, but
    for rounding. A weight is read in blocks."""
    store, layers, same, others = model.store(), list[Layer](), 0, 0
    with checkpoint.tensors() as tensors:
        for name in store.names():
            form, before = store.format(name), tensors.get(name)
            if form.format == "float" and not form.sparse:
                others += 1
                same += before is not None and _is_rounded(before, store.float(name))
            elif before is not None:
                change = _change(before.reshape(len(before), -1), store.dense_blocks(name))
                layers.append(Layer(name, form, _short(change.error), _short(change.scale_error)))
    return layers, same / others if others else 1.0


@dataclass
class Change:
    """Sums over a weight's values before and after: their products with each other and with themselves."""

    both: float = 0.0
    before: float = 0.0
    after: float = 0.0

    def add(self, before: NDArray[Any], after: NDArray[Any]) -> "Change":
        """Add values of both, in the same order."""
        first, second = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
        self.both += float((first * second).sum())  # not by BLAS, whose sums follow the number of threads
        self.before += float(np.square(first).sum())
        self.after += float(np.square(second).sum())
        return self

    @property
    def error(self) -> float:
        """Root mean square of the change, over the weight's own."""
        return math.sqrt(max(self.before + self.after - 2 * self.both, 0.0) / max(self.before, 1e-300))

    @property
    def scale_error(self) -> float:
        """By how much the weight is too large or too small, whatever the quantizer: 0 where one of both explains it.

        Of what is rounded without bias, the part of the new weight along the old is the old itself; of what is fitted
        by least squares, the part of the old along the new is the new itself; all others lie between. So 1 should lie
        between the factors of these two projections, and by how much it does not is the error: 0.1 where all scales are
        1.1 times too large, if the rest of the change is small beside that.
        """
        if not self.before or not self.after:
            return float(self.before != self.after)
        if self.both <= 0:
            return 1.0
        return max(self.both / self.before - 1, 1 - self.after / self.both, 0.0)


def _short(value: float) -> float:
    """Six digits: on those behind, processors of different kinds disagree."""
    return float(f"{value:.6g}")


def _change(before: torch.Tensor, blocks: Iterable[tuple[int, NDArray[np.float32]]]) -> Change:
    change = Change()
    for start, rows in blocks:
        change.add(before[start : start + len(rows)].float().numpy(), rows)
    return change


def _is_rounded(before: torch.Tensor, after: NDArray[Any]) -> bool:
    if before.numel() != after.size:
        return False
    old, new = before.reshape(-1), after.reshape(-1)
    return all(
        _is_near(old[start : start + _BLOCK].float().numpy(), new[start : start + _BLOCK])
        for start in range(0, len(new), _BLOCK)
    )


def _is_near(expected: NDArray[np.float32], found: NDArray[Any]) -> bool:
    return bool((np.abs(expected - found.astype(np.float32)) <= _ROUNDED * np.abs(expected) + 1e-6).all())
