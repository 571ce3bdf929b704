"""What every runtime looks like to those who generate and validate."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class GraphSession(Protocol):
    """A loaded DeviceModel of one graph, a user's module."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """name -> array of each input; returns the same of each output."""
        ...


class LanguageSession(Protocol):
    """A loaded DeviceModel with a decoder and perhaps a tower. `description` is its model.json; `chunk`: the most
    tokens that a step takes, None: any."""

    description: Mapping[str, Any]
    chunk: int | None

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """pixels (1, 3, S, S), normalised as preprocessing.json says -> visual tokens (T, D), if there is a tower."""
        ...

    def release_encoder(self) -> None:
        """Give back the memory that encoding took, where no other image is near; `encode` works as before."""
        ...

    def start(self) -> Any:
        """An empty cache. Rows at and behind a step's position are never read, so that one may step back and go on."""
        ...

    def step(self, ids: Sequence[int], features: NDArray[np.float32], position: int, cache: Any) -> NDArray[np.float32]:
        """Run N tokens from `position` on; the cache changes in place. position + N stays within the context.

        ids: 1 <= N <= chunk; features (N, D): row i is used where ids[i] is the image token, none where the model has
        no tower. Returns logits (N, V).
        """
        ...
