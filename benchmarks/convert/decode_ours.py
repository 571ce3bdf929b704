"""Run as a script: python -m convert.decode_ours MODEL PROMPT STEPS THREADS. Our session in a fresh process, greedily.

Prints a JSON object: seconds to load, to run the prompt, and of each step; the tokens; resident memory in MiB.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from convert.resident import resident
from stages.artifacts import DeviceModel


def main(model: DeviceModel, prompt: int, steps: int, threads: int) -> dict[str, Any]:
    from stages.runtimes.generate import prefill

    started = time.monotonic()
    session = opened(model, threads)
    cache, times = session.start(), []
    loaded = time.monotonic()
    blank = np.zeros((prompt, int(session.description["hidden"])), np.float32)
    tokens = [int(prefill(session, cache, range(7, 7 + prompt), blank)[-1].argmax())]
    ready = time.monotonic()
    for position in range(prompt, prompt + steps):
        before = time.perf_counter()
        tokens.append(int(session.step(tokens[-1:], blank[:1], position, cache)[-1].argmax()))
        times.append(time.perf_counter() - before)
    return {"load": loaded - started, "prompt": ready - loaded, "steps": times, "tokens": tokens, **resident()}


def opened(model: DeviceModel, threads: int) -> Any:
    """Core ML packages in the reference executor, whose threads the environment sets; ONNX files in ONNX Runtime."""
    if model.description()["runtime"] == "coreml":
        from stages.runtimes.coreml_reference import CoreMLSession

        return CoreMLSession(model)
    from stages.runtimes.ort import OnnxSession

    return OnnxSession(model, threads=threads)


if __name__ == "__main__":
    print(json.dumps(main(DeviceModel(Path(sys.argv[1])), *map(int, sys.argv[2:5]))))
