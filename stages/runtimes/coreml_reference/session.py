"""A vision-language model in Core ML packages, behind the interface that validation uses for every runtime."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageError
from stages.runtimes.coreml_reference.program import Function, MLProgram, State

if TYPE_CHECKING:
    from stages.artifacts import DeviceModel


class CoreMLGraph:
    """main.mlpackage of a DeviceModel, a user's module. Raises ProgramError for a package that cannot be read."""

    def __init__(self, model: "DeviceModel", *, precision: str = "float16"):
        self._program = MLProgram(model.path / model.description()["files"]["main"], precision=precision)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """name -> array of each input; returns the same of each output."""
        return self._program.predict(inputs)


class CoreMLSession:
    """encoder.mlpackage and decoder.mlpackage of a DeviceModel; a LanguageSession (stages/runtimes/session.py).

    A function is compiled when it is first called. precision, memory_mib (of each package): as MLProgram's. Raises
    ProgramError for a package that cannot be read.
    """

    def __init__(self, model: "DeviceModel", *, precision: str = "float16", memory_mib: int = 1600):
        self.description = model.description()
        self._open: Callable[[str], MLProgram] = lambda part: MLProgram(
            model.path / self.description["files"][part], precision=precision, memory_mib=memory_mib
        )
        self._programs = {part: self._open(part) for part in self.description["files"]}
        self._context = int(self.description["context"])
        self.chunk: int | None = int(self.description["prefill_chunk"])

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """pixels (1, 3, S, S), normalised -> visual tokens (T, D). Raises StageError where the model has no tower."""
        if "encoder" not in self._programs:
            raise StageError("the model takes no image", hint="It is a language model without a tower.")
        found = self._programs["encoder"].function().predict({"image": pixels})["features"][0]
        features: NDArray[np.float32] = found.astype(np.float32)
        return features

    def release_encoder(self) -> None:
        """Give back the memory that encoding took, where no other image is near."""
        if "encoder" in self._programs:
            self._programs["encoder"] = self._open("encoder")

    def start(self) -> State:
        """An empty cache."""
        return self._decoder("decode").new_state()

    def step(
        self, ids: Sequence[int], features: NDArray[np.float32], position: int, cache: State
    ) -> NDArray[np.float32]:
        """Tokens `ids` (N <= chunk) from `position` on, features (N, D) -> logits (N, V); `cache` is updated.

        Several tokens are one call of `prefill`, padded to its chunk: what padding writes lies after the prompt, where
        the mask hides it until later tokens overwrite it. Where the chunk would leave the context, `decode` takes over.
        Raises StageError where the tokens do not fit.
        """
        count, chunk = len(ids), self.chunk or 1
        if count > chunk or position + count > self._context:
            raise StageError(
                f"{count} tokens at {position} do not fit a chunk of {chunk} or the context of {self._context}",
                hint="Give a prompt in chunks; convert with a larger context, or ask for fewer new tokens.",
            )
        if count > 1 and position + chunk <= self._context:
            return self._call(self._decoder("prefill"), chunk, ids, features, position, cache)
        rows = [
            self._call(self._decoder("decode"), 1, ids[row : row + 1], features[row : row + 1], position + row, cache)
            for row in range(count)
        ]
        return np.concatenate(rows)

    def _decoder(self, function: str) -> Function:
        return self._programs["decoder"].function(function)

    @staticmethod
    def _call(
        function: Function,
        rows: int,
        ids: Sequence[int],
        features: NDArray[np.float32],
        position: int,
        cache: State,
    ) -> NDArray[np.float32]:
        padded_ids = np.zeros((1, rows), np.int32)
        padded_ids[0, : len(ids)] = ids
        inputs: dict[str, NDArray[Any]] = {"input_ids": padded_ids, "position": np.array([position], np.int32)}
        if "image_features" in function.inputs:
            padded_features = np.zeros((1, rows, features.shape[1]), np.float32)
            padded_features[0, : len(ids)] = features
            inputs["image_features"] = padded_features
        logits: NDArray[np.float32] = function.predict(inputs, cache)["logits"][0, : len(ids)].astype(np.float32)
        return logits
