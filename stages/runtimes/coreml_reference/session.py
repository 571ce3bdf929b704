"""A vision-language model in Core ML packages, behind the interface that validation uses for every runtime."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageError
from stages.runtimes.coreml_reference.program import MLProgram, State


class CoreMLSession:
    """encoder.mlpackage and decoder.mlpackage in `folder`, as model.json (`description`) says.

    Implements VisionLanguageSession (stages/runtimes/session.py). Not safe for two threads at once.
    """

    def __init__(self, folder: Path, description: dict[str, Any], *, precision: str = "float16"):
        self.description = description
        self._encoder = MLProgram(folder / description["files"]["encoder"], precision=precision).function()
        decoder = MLProgram(folder / description["files"]["decoder"], precision=precision)
        self._prefill, self._decode = decoder.function("prefill"), decoder.function("decode")
        self._context, self._chunk = int(description["context"]), int(description["prefill_chunk"])

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """pixels (1, 3, S, S), normalised -> visual tokens (T, D)."""
        return self._encoder.predict({"image": pixels})["features"][0].astype(np.float32)

    def start(self) -> State:
        """An empty cache."""
        return self._decode.new_state()

    def step(self, ids: list[int], features: NDArray[np.float32], position: int, cache: State) -> NDArray[np.float32]:
        """Tokens `ids` from `position` on, features (N, D) -> logits (N, V); `cache` is updated.

        Prompts go through `prefill` in chunks, the last one padded: what padding writes lies after the prompt, where
        the mask hides it until later tokens overwrite it. Where a chunk would not fit the context, `decode` takes over.
        Raises StageError where the tokens do not fit.
        """
        count = len(ids)
        if position + count > self._context:
            raise StageError(
                f"{position + count} tokens do not fit the context of {self._context}",
                hint="Convert with a larger context, or ask for fewer new tokens.",
            )
        logits, done = [], 0
        while done < count:
            whole = count - done > 1 and position + done + self._chunk <= self._context
            size = min(self._chunk if whole else 1, count - done)
            logits.append(self._call(ids[done : done + size], features[done : done + size], position + done, cache))
            done += size
        return np.concatenate(logits)

    def _call(self, ids: list[int], features: NDArray[np.float32], position: int, cache: State) -> NDArray[np.float32]:
        function, rows = (self._decode, 1) if len(ids) == 1 else (self._prefill, self._chunk)
        padded_ids = np.zeros((1, rows), np.int32)
        padded_features = np.zeros((1, rows, features.shape[1]), np.float32)
        padded_ids[0, : len(ids)], padded_features[0, : len(ids)] = ids, features
        inputs = {
            "input_ids": padded_ids,
            "image_features": padded_features,
            "position": np.array([position], np.int32),
        }
        return function.predict(inputs, cache)["logits"][0, : len(ids)].astype(np.float32)
