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
from statistics import median
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


@dataclass
class Timed:
    """Seconds of one generation: of the image, of the prompt, and of each token after the first."""

    encode: float
    prefill: float
    tokens: list[float]


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
    before = memory.settled()

    started = time.perf_counter()
    session = open_session(shipped, job.threads)
    generate_timed(session, *questions[0], tokens=2)
    first_use = time.perf_counter() - started

    for number in range(job.warm_up):
        generate_timed(session, *questions[number % len(questions)], tokens=job.tokens)
    loaded, times, resident = memory.settled(), [], []
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(job.generations):
        timed = generate_timed(session, *questions[number % len(questions)], tokens=job.tokens)
        if number % EVERY or job.generations < EVERY:
            times.append(timed)
        if number % EVERY == EVERY - 1:
            resident.append(memory.settled())
            say(f"{number + 1} of {job.generations} generations")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "core_share": round(cpu / wall / job.threads, 3),
        "load_s": max(first_use - usual(times), 0.0),
        "latency_ms": latencies(times, has_tower=questions[0][0] is not None),
        "tokens_per_s": throughput(times),
        "memory_mib": {"before": mib(before), "loaded": mib(loaded), "peak": mib(memory.peak())},
        "leak": leak([each for each in resident if each is not None]),
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
    session: LanguageSession, pixels: NDArray[np.float32] | None, ids: list[int], *, tokens: int
) -> Timed:
    """An answer of exactly so many tokens, each the most likely one; as stages/runtimes/generate.py, with a clock."""
    from stages.runtimes.generate import image_rows, prefill

    started = time.perf_counter()
    features = np.zeros((0, int(session.description["hidden"])), np.float32)
    if pixels is not None:
        features = session.encode(pixels)
    encoded = time.perf_counter()
    cache = session.start()
    logits = prefill(session, cache, ids, image_rows(session, ids, features))[-1]
    token = int(logits.argmax())
    now = time.perf_counter()
    timed = Timed(encoded - started, now - encoded, [])
    blank = np.zeros((1, features.shape[1]), np.float32)
    for place in range(tokens - 1):
        before, now = now, 0.0
        logits = session.step([token], blank, len(ids) + place, cache)[-1]
        token = int(logits.argmax())
        now = time.perf_counter()
        timed.tokens.append(now - before)
    return timed


def usual(times: list[Timed]) -> float:
    """Seconds that an image, a prompt and one more token take when all is loaded."""
    return sum(
        median(values)
        for values in (
            [each.encode for each in times],
            [each.prefill for each in times],
            [second for each in times for second in each.tokens] or [0.0],
        )
    )


def latencies(times: list[Timed], has_tower: bool) -> dict[str, dict[str, float]]:
    """Milliseconds by part; first_token: from the image to the first token."""
    seconds = {
        "encode": [each.encode for each in times] if has_tower else [],
        "prefill": [each.prefill for each in times],
        "first_token": [each.encode + each.prefill for each in times],
        "token": [second for each in times for second in each.tokens],
    }
    return {part: spread(seconds[part]) for part in PARTS if seconds[part]}


def spread(seconds: list[float]) -> dict[str, float]:
    """How many there are; their mean and percentiles in milliseconds."""
    values = np.asarray(seconds) * 1e3
    found = {f"p{each}": round(float(np.percentile(values, each)), 4) for each in PERCENTILES}
    return {"n": len(seconds), "mean": round(float(values.mean()), 4), **found}


def throughput(times: list[Timed]) -> float | None:
    """Tokens a second after the first one of each answer."""
    seconds = [second for each in times for second in each.tokens]
    return round(len(seconds) / sum(seconds), 2) if seconds else None


def leak(resident: list[int]) -> dict[str, Any] | None:
    """What memory did over the generations; None where too few were looked at, or nothing can be seen."""
    found = memory.growth(resident, EVERY)
    if found is None:
        return None
    return {
        "growth": round(found.share, 6),
        "kib_per_generation": round(found.kib, 4),
        "bound": memory.BOUND,
        "passed": found.passed,
        "every": EVERY,
        "resident_mib": [mib(each) for each in resident],
    }


def mib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**20, 3)


def say(text: str) -> None:
    """Tell who started this process how far it is."""
    print(text, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
