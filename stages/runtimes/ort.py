"""ONNX Runtime behind the session protocol, on the CPU, the same numbers every time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipelines.errors import StageError
from stages.artifacts import DeviceModel
from stages.runtimes.processor import check_machine

_PROVIDERS = ["CPUExecutionProvider"]
_SILENT = 3  # errors are raised; the runtime's warnings are about speed on this host, which nobody here must act on


class OnnxSession:
    """The decoder of a DeviceModel, and its encoder where it has one. One thread unless told: sums are then in one
    order.

    A file is loaded when it is first needed; raises StageError where ONNX Runtime cannot.
    """

    chunk: int | None = None

    def __init__(self, model: DeviceModel, threads: int = 1):
        self.description = model.description()
        self._load: Callable[[str], onnxruntime.InferenceSession] = lambda part: _load(model, part, threads)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """pixels (1, 3, S, S) float32 -> visual tokens (T, D) float32."""
        image = np.ascontiguousarray(pixels, np.float32)
        return np.asarray(self._session("encoder").run(["features"], {"image": image})[0])[0]

    def release_encoder(self) -> None:
        """Give back the memory that encoding took; the next image loads the encoder again."""
        self._sessions.pop("encoder", None)

    def start(self) -> Any:
        """The cache: buffers of the whole context, each bound as past and as present: a step writes its rows only."""
        binding = self._session("decoder").io_binding()
        shape = (1, *(int(self.description[key]) for key in ("kv_heads", "context", "head_dim")))
        for layer in range(int(self.description["layers"])):
            for part in ("key", "value"):
                buffer = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", buffer)
                binding.bind_ortvalue_output(f"present.{layer}.{part}", buffer)
        return binding

    def step(
        self,
        ids: Sequence[int],
        features: NDArray[np.float32] | None,
        position: int,
        cache: Any,
        keep: int = 0,
    ) -> NDArray[np.float32]:
        """ids (N tokens), features (N, D) or None where no token is the image's, position of the first.

        Returns logits (N, V) float32; of the last `keep` tokens alone, where that is not 0: the product with the
        vocabulary is a quarter of a small model's work, and a long prompt's logits are the largest array of all.
        Raises StageError where the tokens do not fit the context.
        """
        if position + len(ids) > int(self.description["context"]):
            raise StageError(
                f"{len(ids)} tokens at {position} do not fit the context of {self.description['context']}",
                hint="Convert with a larger context (convert.context), or ask for fewer new tokens.",
            )
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": np.asarray(ids, np.int64)[None],
            "attention_mask": np.ones((1, position + len(ids)), np.int64),
            "logits_to_keep": np.asarray([keep], np.int64),
        }
        decoder = self._session("decoder")
        if any(value.name == "image_features" for value in _inputs(decoder)):
            blank = np.zeros((1, self.description["hidden"]), np.float32)
            rows = blank if features is None else features
            inputs["image_features"] = np.ascontiguousarray(rows, np.float32)[None]
        for name, array in inputs.items():  # bind_cpu_input knows no input that may be left out
            cache.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        cache.bind_output("logits", "cpu")  # anew: the buffer of the last step has that step's number of rows
        decoder.run_with_iobinding(cache)
        return np.asarray(cache.get_outputs()[-1].numpy())[0]

    def _session(self, part: str) -> onnxruntime.InferenceSession:
        if part not in self._sessions:
            self._sessions[part] = self._load(part)
        return self._sessions[part]


class OnnxGraph:
    """main.onnx of a DeviceModel, a user's module. Raises StageError where ONNX Runtime cannot load it."""

    def __init__(self, model: DeviceModel, threads: int = 1):
        self._session = _load(model, "main", threads)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """name -> array of each input; returns the same of each output."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, map(np.asarray, self._session.run(names, dict(inputs))), strict=True))


def _inputs(session: onnxruntime.InferenceSession) -> list[Any]:
    """Also those that may be left out."""
    return [*session.get_inputs(), *session.get_overridable_initializers()]


def _load(model: DeviceModel, part: str, threads: int) -> onnxruntime.InferenceSession:
    description = model.description()
    if "prepacked_for" in description:
        check_machine(description["prepacked_for"])
    path = model.path / description["files"][part]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    options.log_severity_level = _SILENT
    for key, value in description.get("session_options", {}).items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(path, options, providers=_PROVIDERS)
    except Exception as cause:  # the runtime's own errors have no public base
        raise StageError(
            f"ONNX Runtime cannot load {path.name} in {path.parent}: {cause}",
            hint="Expected what the convert stage wrote, with its .data beside it. Build convert again.",
        ) from cause
