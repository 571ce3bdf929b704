"""ONNX Runtime behind the session protocol, on the CPU, the same numbers every time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipelines.errors import StageError
from stages.artifacts import DeviceModel

_PROVIDERS = ["CPUExecutionProvider"]
_SILENT = 3  # errors are raised; the runtime's warnings are about speed on this host, which nobody here must act on


class OnnxSession:
    """encoder.onnx and decoder.onnx of a DeviceModel. One thread unless told: sums are then in one order.

    Raises StageError where ONNX Runtime cannot load a file.
    """

    chunk: int | None = None

    def __init__(self, model: DeviceModel, threads: int = 1):
        self.description = model.description()
        self._encoder, self._decoder = (_load(model, part, threads) for part in ("encoder", "decoder"))

    def encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """pixels (1, 3, S, S) float32 -> visual tokens (T, D) float32."""
        features = self._encoder.run(["features"], {"image": np.ascontiguousarray(pixels, np.float32)})[0]
        return np.asarray(features)[0]

    def start(self) -> Any:
        """The cache: buffers of the whole context, each bound as past and as present: a step writes its rows only."""
        binding = self._decoder.io_binding()
        shape = (1, *(int(self.description[key]) for key in ("kv_heads", "context", "head_dim")))
        for layer in range(int(self.description["layers"])):
            for part in ("key", "value"):
                buffer = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", buffer)
                binding.bind_ortvalue_output(f"present.{layer}.{part}", buffer)
        binding.bind_output("logits", "cpu")
        return binding

    def step(self, ids: Sequence[int], features: NDArray[np.float32], position: int, cache: Any) -> NDArray[np.float32]:
        """ids (N tokens), features (N, D), position of the first -> logits (N, V) float32."""
        cache.bind_cpu_input("input_ids", np.asarray(ids, np.int64)[None])
        cache.bind_cpu_input("image_features", np.ascontiguousarray(features, np.float32)[None])
        cache.bind_cpu_input("position", np.asarray([position], np.int64))
        cache.bind_output("logits", "cpu")  # anew: the buffer of the last step has that step's number of rows
        self._decoder.run_with_iobinding(cache)
        return np.asarray(cache.get_outputs()[-1].numpy())[0]


def _load(model: DeviceModel, part: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.use_deterministic_compute = True
    options.log_severity_level = _SILENT
    path = model.path / model.description()["files"][part]
    try:
        return onnxruntime.InferenceSession(path, options, providers=_PROVIDERS)
    except Exception as cause:  # the runtime's own errors have no public base
        raise StageError(
            f"ONNX Runtime cannot load {path.name} in {path.parent}: {cause}",
            hint="Expected what the convert stage wrote, with its .data beside it. Build convert again.",
        ) from cause
