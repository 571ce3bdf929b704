"""What calibration measures of each layer: second moments and ranges of its input, Fisher information of its weight.

Second moments drive GPTQ (arXiv:2210.17323), the Fisher information weighs palettes (SqueezeLLM, arXiv:2306.07629) and
ranks layers: 1/2 sum F (w - q)^2 is the second-order estimate of the answers' KL divergence, in nats a token.

A second moment is symmetric, so that its upper triangle is kept: row by row, each from its diagonal on.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import StageError, nearest
from stages.artifacts import Checkpoint
from stages.quantizers.rtn import round_to_nearest
from stages.tensorfile import NUMPY_TYPES, TensorWriter, read_header

SENSITIVITY_BITS, SENSITIVITY_GROUP = 4, 32
_BLOCK = 1024  # columns of a product at a time, of which only what lies above the diagonal is computed
_WEIGHTS = 1 << 22  # at a time, when errors are summed


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order whatever the machine's threads, so that results are the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Moments:
    """Sums over one layer's inputs. total: (in, in), of which the upper triangle counts; of one batch float32, over
    batches float64. mass: the sum of the tokens' weights. low, high: the range of the inputs."""

    def __init__(self, total: torch.Tensor, mass: float = 0.0, low: float = math.inf, high: float = -math.inf):
        self.total, self.mass, self.low, self.high = total, mass, low, high

    @classmethod
    def of(cls, inputs: torch.Tensor, weights: torch.Tensor | None) -> "Moments":
        """inputs: (tokens, in) float32; weights: (tokens,), where None 1. Those of weight 0 are left out."""
        if weights is not None:
            seen = weights > 0
            inputs, weights = inputs[seen], weights[seen]
        weighted = inputs if weights is None else inputs * weights.unsqueeze(1)
        if not len(inputs):
            return cls(inputs.new_zeros(inputs.shape[1], inputs.shape[1]))
        low, high = torch.aminmax(inputs)
        mass = float(len(inputs) if weights is None else weights.double().sum())
        return cls(_upper_product(weighted, inputs), mass, float(low), float(high))

    @classmethod
    def empty(cls, columns: int, device: torch.device) -> "Moments":
        return cls(torch.zeros(columns, columns, dtype=torch.float64, device=device))

    def add(self, other: "Moments") -> None:
        self.total += other.total
        self.mass += other.mass
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def plus(self, other: "Moments") -> "Moments":
        both = Moments(self.total.clone(), self.mass, self.low, self.high)
        both.add(other)
        return both

    def write(self, writer: TensorWriter, name: str) -> None:
        """NAME.second_moment, the mean, and NAME.range; nothing where no token was seen."""
        if self.mass:
            writer.add(f"{name}.second_moment", packed((self.total / self.mass).float().cpu()))
            writer.add(f"{name}.range", np.array([self.low, self.high], np.float32))


def _upper_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left^T right, (n, n), without the blocks below the diagonal."""
    columns = right.shape[1]
    if columns <= _BLOCK:
        return left.T @ right
    product = right.new_zeros(columns, columns)
    for start in range(0, columns, _BLOCK):
        rows = slice(start, start + _BLOCK)
        product[rows, start:] = left[:, rows].T @ right[:, start:]
    return product


def packed(matrix: torch.Tensor) -> NDArray[np.float32]:
    """The upper triangle of (n, n), row by row: float32 (n (n + 1) / 2,)."""
    values = matrix.numpy()
    return np.concatenate([row[index:] for index, row in enumerate(values)])


def unpacked(triangle: NDArray[np.float32]) -> torch.Tensor:
    """The whole symmetric matrix, float32 (n, n)."""
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    matrix, position = np.zeros((size, size), np.float32), 0
    for index in range(size):
        matrix[index, index:] = triangle[position : position + size - index]
        position += size - index
    upper = torch.from_numpy(matrix)
    return upper + upper.triu(1).T


class StatisticsReader:
    """statistics.safetensors; each tensor is read when asked for, into memory of its own. path None: there are none."""

    def __init__(self, path: Path | None):
        self._path = path
        self._entries = read_header(path) if path else {}

    def second_moment(self, name: str) -> torch.Tensor:
        """float32 (in, in). Raises StageError where calibration did not see the layer."""
        return unpacked(self._array(name, "second_moment"))

    def fisher(self, name: str) -> torch.Tensor:
        """float32, in the weight's shape. Raises StageError where calibration did not see the layer."""
        return torch.from_numpy(self._array(name, "fisher"))

    def has(self, name: str, what: str) -> bool:
        """what: second_moment, range or fisher."""
        return f"{name}.{what}" in self._entries

    def _array(self, name: str, what: str) -> NDArray[Any]:
        if self._path is None:
            raise StageError(f"{name} is needed, and there is no calibration", hint="Run calibrate before quantize.")
        entry = self._entries.get(f"{name}.{what}")
        if entry is None:
            raise StageError(f"calibration has no {what.replace('_', ' ')} of {name}", hint=self._hint(name, what))
        with self._path.open("rb") as file:
            values = np.fromfile(file, NUMPY_TYPES[entry.dtype], math.prod(entry.shape), offset=entry.begin)
        if not np.isfinite(values).all():
            raise StageError(f"the {what.replace('_', ' ')} of {name} holds NaN", hint="Run calibrate again.")
        return values.reshape(entry.shape)

    def _hint(self, name: str, what: str) -> str:
        if what == "fisher" and not any(each.endswith(".fisher") for each in self._entries):
            return "It was made with calibrate.fisher=false; set it to true."
        if name.startswith(("vision.", "projector.")):
            return "Calibrate on images too: calibrate.path needs a questions.jsonl."
        known = {each.rpartition(".")[0] for each in self._entries}
        return nearest(name, known) or "Weights are named as in the checkpoint."


def sensitivity(checkpoint: Checkpoint, statistics: StatisticsReader) -> dict[str, float]:
    """By name of each weight whose Fisher information was measured, the error that it weighs, of rounding the weight to
    4 bits in groups of 32: in nats a token."""
    with checkpoint.tensors() as tensors:
        return {
            name: _score(tensors[name].flatten(1), statistics.fisher(name).flatten(1))
            for name in tensors
            if statistics.has(name, "fisher")
        }


def _score(weight: torch.Tensor, fisher: torch.Tensor) -> float:
    columns = weight.shape[1]
    size = SENSITIVITY_GROUP if columns % SENSITIVITY_GROUP == 0 else columns
    total, step = 0.0, max(1, _WEIGHTS // columns)
    for start in range(0, len(weight), step):
        part = weight[start : start + step].float()
        error = part - round_to_nearest(part, SENSITIVITY_BITS, size, symmetric=False).dense()
        total += float((fisher[start : start + step].double() * error.double().square()).sum())
    return 0.5 * total
