"""The process that is measured: `python -m stages.measuring.process JOB`, fresh, on pinned cores.

JOB is a folder with job.json, whose fields `Job` has, and inputs.npz: pixels.0, ids.0, pixels.1, ... as the encoder and
the decoder take them, so that nothing that prepares images or text counts as the model's memory or time. It leaves
result.json: what `measured` returns, or {"error": {"message", "hint"}}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import TapeoutError
from stages.measuring import memory

if TYPE_CHECKING:
    from stages.runtimes.session import LanguageSession

EVERY = 5  # generations between two looks at memory; the first after a look is not timed, its pages being new
PERCENTILES = (50, 90, 95, 99)
PARTS = ("encode", "prefill", "first_token", "token")


@dataclass(frozen=True)
class Job:
    """bundle: its folder. cores: those to stay on, none where the system cannot pin. warm_up, generations: how many
    answers are given before, and while, it is measured; tokens: in each, whether or not the model would have ended."""

    bundle: str
    threads: int
    cores: list[int]
    warm_up: int
    generations: int
    tokens: int


def main(folder: Path) -> None:
    """Do the job in the folder."""
    job = Job(**json.loads((folder / "job.json").read_text()))
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    try:
        result = measured(job, folder / "inputs.npz")
    except TapeoutError as error:
        result = {"error": {"message": error.message, "hint": error.hint}}
    (folder / "result.json").write_text(json.dumps(result))


def measured(job: Job, inputs: Path) -> dict[str, Any]:
    """{"core_share": of the cores' time, what this process had of it, "load_s", "latency_ms": {part:
    {"n", "mean", "p50", ...}}, "tokens_per_s", "memory_mib": {"before", "loaded", "peak"}, "leak": {...} | None}"""
    from stages.measuring.bundle import open_bundle
    from stages.runtimes.opening import open_session

    shipped = open_bundle(Path(job.bundle))
    prepare_runtime(str(shipped.description()["runtime"]), job.threads)
    questions = read_inputs(inputs)
    memory.settle()
    before = memory.resident()

    seconds = np.full((max(job.generations, job.warm_up, 1), 1 + job.tokens), np.nan)  # in memory from here on
    started = time.perf_counter()
    session = open_session(shipped, job.threads)
    generate_timed(session, *questions[0], seconds[0, :3])
    first_use = time.perf_counter() - started

    for number in range(job.warm_up):
        generate_timed(session, *questions[number % len(questions)], seconds[number])
    seconds[:] = np.nan
    memory.settle()
    loaded, samples = memory.resident(), []
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(job.generations):
        generate_timed(session, *questions[number % len(questions)], seconds[number])
        if number % EVERY == 0 and job.generations > EVERY:
            seconds[number] = np.nan
        if number % EVERY == EVERY - 1:
            memory.settle()
            samples.append(memory.allocated())
            say(f"{number + 1} of {job.generations} generations")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    times = seconds[~np.isnan(seconds[:, 0])]
    return {
        "core_share": round(cpu / wall / job.threads, 3),
        "load_s": max(first_use - float(np.median(times, axis=0)[:3].sum()), 0.0),
        "latency_ms": latencies(times, has_tower=questions[0][0] is not None),
        "tokens_per_s": round(times[:, 2:].size / float(times[:, 2:].sum()), 2),
        "memory_mib": {"before": mib(before), "loaded": mib(loaded), "peak": mib(memory.peak())},
        "leak": leak([each for each in samples if each is not None]),
    }


def prepare_runtime(runtime: str, threads: int) -> None:
    """Import what runs the files, so that loading is theirs alone; torch, which runs Core ML's, takes its threads."""
    if runtime == "coreml":
        import torch

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        importlib.import_module("stages.runtimes.coreml_reference")
    else:
        importlib.import_module("stages.runtimes.ort")


def read_inputs(path: Path) -> list[tuple[NDArray[np.float32] | None, list[int]]]:
    """(pixels, ids) of each question; pixels None for a model without a tower."""
    with np.load(path) as file:
        count = sum(name.startswith("ids.") for name in file.files)
        return [
            (file[f"pixels.{place}"] if f"pixels.{place}" in file.files else None, file[f"ids.{place}"].tolist())
            for place in range(count)
        ]


def generate_timed(
    session: LanguageSession, pixels: NDArray[np.float32] | None, ids: list[int], seconds: NDArray[np.float64]
) -> None:
    """An answer, token by token the most likely one, as stages/runtimes/generate.py gives it, with a clock.

    seconds (1 + N), for N tokens: what the image took is put there, the prompt, and each token after the first.
    """
    from stages.runtimes.generate import image_rows, prefill

    before = time.perf_counter()
    features = np.zeros((0, int(session.description["hidden"])), np.float32)
    if pixels is not None:
        features = session.encode(pixels)
    now = time.perf_counter()
    seconds[0], before = now - before, now
    cache = session.start()
    logits = prefill(session, cache, ids, image_rows(session, ids, features))[-1]
    token = int(logits.argmax())
    now = time.perf_counter()
    seconds[1], before = now - before, now
    blank = np.zeros((1, features.shape[1]), np.float32)
    for place in range(len(seconds) - 2):
        logits = session.step([token], blank, len(ids) + place, cache)[-1]
        token = int(logits.argmax())
        now = time.perf_counter()
        seconds[2 + place], before = now - before, now


def latencies(times: NDArray[np.float64], has_tower: bool) -> dict[str, dict[str, float]]:
    """times (generations, 1 + tokens) in seconds -> milliseconds by part; first_token: from the image to it."""
    found = {
        "encode": times[:, 0],
        "prefill": times[:, 1],
        "first_token": times[:, 0] + times[:, 1],
        "token": times[:, 2:].ravel(),
    }
    return {part: spread(found[part]) for part in PARTS if has_tower or part != "encode"}


def spread(seconds: NDArray[np.float64]) -> dict[str, float]:
    """How many there are; their mean and percentiles in milliseconds."""
    values = seconds * 1e3
    found = {f"p{each}": round(float(np.percentile(values, each)), 4) for each in PERCENTILES}
    return {"n": len(values), "mean": round(float(values.mean()), 4), **found}


def leak(samples: list[int]) -> dict[str, Any] | None:
    """What memory did over the generations; None where too few were looked at, or nothing can be seen."""
    found = memory.growth(samples, EVERY)
    if found is None:
        return None
    return {
        "growth": round(found.share, 6),
        "kib_per_generation": round(found.kib, 4),
        "bound": memory.BOUND,
        "passed": found.passed,
        "every": EVERY,
        "allocated_mib": [mib(each) for each in samples],
    }


def mib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**20, 3)


def say(text: str) -> None:
    """Tell who started this process how far it is."""
    print(text, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
