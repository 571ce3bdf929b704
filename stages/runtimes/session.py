"""What every runtime looks like to those who generate and validate."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class VisionLanguageSession(Protocol):
    """A loaded DeviceModel. `description` is its model.json; `chunk`: the most tokens that a step takes, None: any."""

    description: Mapping[str, Any]
    chunk: int | None

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """pixels (1, 3, S, S), normalised as preprocessing.json says -> visual tokens (T, D)."""
        ...

    def start(self) -> Any:
        """An empty cache. Rows at and behind a step's position are never read, so that one may step back and go on."""
        ...

    def step(self, ids: Sequence[int], features: NDArray[np.float32], position: int, cache: Any) -> NDArray[np.float32]:
        """Run N tokens from `position` on; the cache changes in place. position + N stays within the context.

        ids: 1 <= N <= chunk; features (N, D): row i is used where ids[i] is the image token. Returns logits (N, V).
        """
        ...
