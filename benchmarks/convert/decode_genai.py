"""Run as a script, by the peer's Python: python -m convert.decode_genai MODEL PROMPT STEPS THREADS.

onnxruntime-genai in a fresh process, greedily. Prints what convert.decode_ours prints.
"""

import json
import sys
import time
from typing import Any

import onnxruntime_genai

from convert.resident import resident


def main(model: str, prompt: int, steps: int, threads: int) -> dict[str, Any]:
    started = time.monotonic()
    config = onnxruntime_genai.Config(model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    loaded_model = onnxruntime_genai.Model(config)
    loaded = time.monotonic()
    parameters = onnxruntime_genai.GeneratorParams(loaded_model)
    parameters.set_search_options(max_length=prompt + steps + 2, do_sample=False)
    generator, times = onnxruntime_genai.Generator(loaded_model, parameters), []
    generator.append_tokens(list(range(7, 7 + prompt)))
    generator.generate_next_token()
    ready = time.monotonic()
    for _ in range(steps):
        before = time.perf_counter()
        generator.generate_next_token()
        times.append(time.perf_counter() - before)
    tokens = [int(token) for token in generator.get_sequence(0)[prompt:]]
    return {"load": loaded - started, "prompt": ready - loaded, "steps": times, "tokens": tokens, **resident()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(int, sys.argv[2:5]))))
