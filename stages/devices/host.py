"""Latency measured on this machine: the model's shape with random weights, in ONNX Runtime, on one thread.

What is measured varies with what else the machine does: the median of several runs does so least, and the result is
kept for as long as the process lives, so that one shape has one latency.
"""

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.artifacts import DeviceModel
from stages.devices.latency import Latency
from stages.devices.operators import graphs
from stages.lowering.onnx import lower_onnx
from stages.models.vlm import ModelConfig
from stages.quantizers.store import QuantizedStore, StoreWriter
from stages.runtimes.ort import OnnxSession

# Of each graph: runs before any is counted; then until so many seconds have passed, and no fewer than so many.
_WARM, _SECONDS, _LEAST = 2, 0.2, 7


class Host:
    """Measures what would be predicted. Weights are float32 in the runtime, whatever their stored sizes."""

    def __init__(self, *, context: int, text_tokens: int):
        self._context, self._text_tokens = context, text_tokens

    def predict(self, model: ModelConfig, sizes: Mapping[str, int]) -> Latency:
        """sizes are not looked at: nothing is quantized, and time depends on shapes alone."""
        graphs(model, context=self._context, text_tokens=self._text_tokens)  # refuses what has no such graphs
        return _measured(model, self._context, self._text_tokens)


def lowered(model: ModelConfig, folder: Path, *, context: int) -> DeviceModel:
    """A model of that shape with random float16 weights, for ONNX Runtime, in the empty folder."""
    weights, out = folder / "weights", folder / "device"
    for each in (weights, out):
        each.mkdir()
    module: Any = model.build()
    with StoreWriter(weights) as writer:
        for name, tensor in module.state_dict().items():
            writer.add_float(name, tensor.detach().half().numpy())
    device_model = DeviceModel(out)
    store = QuantizedStore.open(weights)
    device_model.write_json("model.json", lower_onnx(model, store, out, context=context, accuracy_level=1))
    return device_model


@lru_cache(maxsize=4096)
def _measured(model: ModelConfig, context: int, text_tokens: int) -> Latency:
    with TemporaryDirectory(prefix="host-") as folder:
        session = OnnxSession(lowered(model, Path(folder), context=context), threads=1)
        text, vision = model.text, model.vision
        assert text is not None
        encode = 0.0
        if vision:
            pixels = np.zeros((1, 3, vision.image_size, vision.image_size), np.float32)
            encode = _milliseconds(lambda: session.encode(pixels))
            session.release_encoder()
        cache, prompt = session.start(), text_tokens + (vision.tokens if vision else 0)
        rows = {count: np.zeros((count, text.hidden_size), np.float32) if vision else None for count in (prompt, 1)}

        def run(tokens: int, position: int) -> Callable[[], Any]:
            return lambda: session.step([0] * tokens, rows[tokens], position, cache, keep=1)

        return Latency(encode, _milliseconds(run(prompt, 0)), _milliseconds(run(1, context - 1)))


def _milliseconds(run: Callable[[], Any]) -> float:
    for _ in range(_WARM):
        run()
    found: list[float] = []
    while len(found) < _LEAST or sum(found) < _SECONDS:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return 1e3 * median(found)
