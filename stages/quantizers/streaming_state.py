"""What a calibration in pieces keeps: the passage itself, tensors in files, workers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch

from stages.artifacts import Checkpoint
from stages.data.image import preprocess
from stages.models.vlm import VisionLanguageModel
from stages.quantizers.clock import Clock
from stages.quantizers.examples import Sample
from stages.quantizers.layers import Layer
from stages.quantizers.streaming_pieces import EMBEDDINGS, NORM, Piece
from stages.schema import CalibrateConfig

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Passage:
    """Samples on their way through the pieces of a model, which is on the meta device between its pieces.

    hidden and gradients: of each piece and sample, what it takes and the gradient of that; sequences without padding.
    """

    checkpoint: Checkpoint
    model: VisionLanguageModel
    layers: dict[str, Layer]
    pieces: list[Piece]
    samples: Sequence[Sample]
    config: CalibrateConfig
    scratch: Path
    hidden: "Tensors"
    gradients: "Tensors"
    workers: "Workers"
    device: torch.device
    clock: Clock

    def concerned(self, piece: Piece) -> list[int]:
        """The samples that go through a piece: only those with an image through what sees images."""
        return [index for index, sample in enumerate(self.samples) if sample.image is not None or not piece.vision]

    def taken(self, piece: int, sample: int) -> torch.Tensor:
        """What a piece takes of a sample, on the device: of the first one of a tower pixels (3, S, S), of the
        embeddings the image's features (T, D), or nothing."""
        image = self.samples[sample].image
        if piece == 0 and image is not None:
            return torch.from_numpy(preprocess(image, self.checkpoint.preprocessing())[0]).to(self.device)
        if piece == 0 or (image is None and self.pieces[piece - 1].vision):
            return torch.empty(0, device=self.device)
        return self.hidden.read(piece, sample).to(self.device)

    def cost(self, piece: int, backward: bool = False) -> float:
        """Of a sample's way through it: in weights, once forward and thrice backward, where the head counts too."""
        assert self.model.config.text is not None
        name, text = self.pieces[piece].name, self.model.config.text
        if name == EMBEDDINGS:
            return float(text.hidden_size)
        if name == NORM:
            rank = text.head_rank or text.hidden_size
            return float(3 * rank * text.vocab_size if backward else text.hidden_size * text.hidden_size)
        return float(sum(each.numel() for each in self.model.get_submodule(name).parameters())) * (3 if backward else 1)


class Tensors:
    """Float32 tensors in files under a folder, by piece and sequence. They are read, not mapped: what was read does not
    count as this process's memory."""

    def __init__(self, folder: Path):
        self._folder = folder

    def write(self, piece: int, sample: int, tensor: torch.Tensor) -> None:
        path = self._path(piece, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, tensor.detach().cpu().numpy())

    def read(self, piece: int, sample: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self._path(piece, sample)))

    def forget(self, piece: int) -> None:
        """Remove the files of a piece that nobody reads any more."""
        for path in self._path(piece, 0).parent.glob("*.npy"):
            path.unlink()

    def _path(self, piece: int, sample: int) -> Path:
        return self._folder / f"{piece:03d}" / f"{sample:05d}.npy"


class Workers:
    """Threads that each compute on one core. Results come in the order of the items, so that sums have one order."""

    def __init__(self, threads: int):
        self._threads = threads if device_of().type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self._threads, initializer=lambda: torch.set_num_threads(1))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item], alone: bool = False) -> Iterator[Result]:
        """function of each item; few results wait at a time. alone: one after the other, for what takes much memory."""
        if self._threads == 1 or alone:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        for item in items:
            if len(waiting) > self._threads:
                yield waiting.popleft().result()
            waiting.append(self._pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


def device_of() -> torch.device:
    """CUDA where torch sees it. Its sums have another order: the last bits of statistics differ from a processor's."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products in float32, on CUDA too."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def parts(items: Sequence[int], size: int) -> list[Sequence[int]]:
    """In runs of `size`, the last one shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
