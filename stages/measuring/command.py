"""`tapeout measure`: a bundle's shipped files on this machine. What is said of a device is predicted elsewhere."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.errors import ConfigError, StageError, WorkerError
from pipelines.project import Project
from pipelines.sealed import write_sealed

if TYPE_CHECKING:
    from stages.measuring.bundle import Shipped
    from stages.measuring.process import Job

VERSION = 1
WARM_UP, GENERATIONS, TOKENS, IMAGES, SEED = 20, 200, 16, 4, 7
BUSY = 0.9  # below this share of its core, a process shows what else the machine does
QUIET = 10.0  # s between two lines of progress
TITLES = {"encode": "image", "prefill": "prompt", "first_token": "first token", "token": "each further token"}
NOTES = {
    "coreml": "measures the reference executor on this machine, neither Core ML nor a phone",
    "onnxruntime": "measured on this machine's processor, not on the device",
}


def measure(arguments: list[str], project: Project) -> int:
    """run a BUNDLE's shipped files on this machine: latency percentiles, memory, and whether it grows"""
    options = parse(arguments)
    from stages.measuring.bundle import open_bundle

    bundles = [open_bundle(Path(path)) for path in options.bundles]  # all are looked at before anything runs
    found = []
    for bundle in bundles:
        result = measure_bundle(bundle, options, project)
        write_sealed(kept_at(project, bundle.digest), result)
        found.append(result)
        if not options.json:
            print("\n".join([*([""] if len(found) > 1 else []), *lines(result)]), flush=True)
    if options.json:
        print(json.dumps({"measured": found}))
    return 0 if all(result["leak"] is None or result["leak"]["passed"] for result in found) else 1


def kept_at(project: Project, digest: str) -> Path:
    """Where the last measurement of the bundle is kept whose manifest.json has this sha256; sealed."""
    return project.state / "measured" / f"{digest}.json"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"tapeout measure: {message}", hint="'tapeout measure --help' lists its options")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="tapeout measure", description="Runs a bundle's shipped files on this machine.", allow_abbrev=False
    )
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", help="its folder: artifacts/DEVICE")
    parser.add_argument(
        "--generations", type=int, default=GENERATIONS, metavar="N", help=f"answers after {WARM_UP} to warm up"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="and as many cores, to which it is pinned")
    parser.add_argument("--tokens", type=int, metavar="N", help=f"of each answer; by default {TOKENS}, or what fits")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="K", help="and questions, asked in turn")
    parser.add_argument("--seed", type=int, default=SEED, metavar="S", help="of images and questions")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    least = {"generations": 2, "threads": 1, "tokens": 2, "images": 1}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ConfigError(f"tapeout measure: --{name} {value}: it takes {smallest} or more")
    return options


def measure_bundle(bundle: Shipped, options: argparse.Namespace, project: Project) -> dict[str, Any]:
    """Measure in a process of its own. Raises ConfigError and StageError."""
    from stages.measuring.machine import machine, usable_cores
    from stages.measuring.process import Job

    cores = usable_cores()
    if options.threads > len(cores):
        raise ConfigError(f"tapeout measure: --threads {options.threads}: there are {len(cores)} cores")
    pinned = cores[-options.threads :] if hasattr(os, "sched_setaffinity") else []
    job = Job(str(bundle.path.resolve()), options.threads, pinned, WARM_UP, options.generations, 0)
    with tempfile.TemporaryDirectory(prefix="tapeout-measure-") as folder:
        prompts = write_inputs(bundle, options, Path(folder, "inputs.npz"))
        job = replace(job, tokens=fitting(bundle, options.tokens, max(prompts)))
        Path(folder, "job.json").write_text(json.dumps(asdict(job)))
        load, began = os.getloadavg()[0], int(time.time())
        result = run(Path(folder), bundle, job, project, quiet=options.json)
    runtime = str(bundle.description()["runtime"])
    settings = {key: value for key, value in asdict(job).items() if key != "bundle"}
    return {
        "measured_version": VERSION,
        "bundle": bundle.digest,
        "device": bundle.manifest["device"]["name"],
        "runtime": runtime,
        "note": NOTES.get(runtime, NOTES["onnxruntime"]),
        "machine": machine(),
        "settings": {**settings, "images": options.images, "seed": options.seed, "prompt_tokens": prompts},
        "began": began,
        "load_average": round(load, 2),
        **result,
    }


def write_inputs(bundle: Shipped, options: argparse.Namespace, path: Path) -> list[int]:
    """Write what the encoder and the decoder take for each question; return how many tokens each prompt has."""
    import numpy as np

    from stages.data.image import preprocess
    from stages.data.prompt import PromptFormat
    from stages.data.source import question_source

    description = bundle.description()
    settings = bundle.read_json("preprocessing.json")
    tower = "encoder" in description["files"]
    image = (int(description["image_token_id"]), int(description["image_tokens"])) if tower else (None, 0)
    prompts = PromptFormat.open(bundle.path, *image)
    arrays: dict[str, Any] = {}
    for place, example in enumerate(question_source().examples("test", options.images, options.seed)):
        arrays[f"ids.{place}"] = np.asarray(prompts.encode(example.question), np.int64)
        if tower:
            arrays[f"pixels.{place}"] = preprocess(example.image, settings)
    np.savez(path, **arrays)
    return [len(arrays[f"ids.{place}"]) for place in range(options.images)]


def fitting(bundle: Shipped, tokens: int | None, prompt: int) -> int:
    """How many tokens an answer gets. Raises ConfigError where the context has no room for them."""
    context = int(bundle.description()["context"])
    room = context - prompt + 1  # the last token is not put in
    if room < 2 or (tokens or 0) > room:
        raise ConfigError(
            f"tapeout measure: --tokens {tokens or TOKENS}: the context of {context} holds {max(room, 0)} after a "
            f"prompt of {prompt}",
            hint="ask for fewer, or convert with a larger context: convert.context",
        )
    return tokens or min(TOKENS, room)


def run(folder: Path, bundle: Shipped, job: Job, project: Project, quiet: bool) -> dict[str, Any]:
    """Have the job done. Raises StageError with what stopped it."""
    import stages

    threads = str(job.threads)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONPATH": os.pathsep.join([str(Path(stages.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    words = [sys.executable, "-m", "stages.measuring.process", str(folder)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, cwd=project.root) as process:
        spoken = time.monotonic()
        for line in process.stdout or ():
            if not quiet and time.monotonic() - spoken > QUIET:
                spoken = time.monotonic()
                print(f"{bundle.path.name}: {line.strip()}", file=sys.stderr, flush=True)
    if not (folder / "result.json").is_file():
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
        raise WorkerError(
            f"{bundle.path}: the process that ran it ended with {how}",
            hint="what it said is above; signal 9 is what a system short of memory sends",
        )
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    if error := result.get("error"):
        raise StageError(f"{bundle.path}: {error['message']}", hint=error["hint"])
    return result


def lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield what was measured, for the terminal."""
    machine, settings = result["machine"], result["settings"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    yield f"{result['device']}: {result['note']}"
    yield f"  machine            {machine['cpu'] or machine['architecture']}, {libraries}"
    cores = f"on cores {', '.join(map(str, settings['cores']))}" if settings["cores"] else "not pinned"
    yield (
        f"  settings           {settings['threads']} threads {cores}; {settings['generations']} answers of "
        f"{settings['tokens']} tokens after {settings['warm_up']}; prompts of {min(settings['prompt_tokens'])} to "
        f"{max(settings['prompt_tokens'])}; load average {result['load_average']:.1f}"
    )
    if settings["threads"] == 1 and result["core_share"] < BUSY:
        yield f"  busy machine       other work had {100 - 100 * result['core_share']:.0f} % of the core's time"
    yield f"  {'ms':<18} {'n':>6}{'mean':>9}{'p50':>9}{'p90':>9}{'p95':>9}{'p99':>9}"
    for part, found in result["latency_ms"].items():
        figures = "".join(f"{found[key]:>9.3f}" for key in ("mean", "p50", "p90", "p95", "p99"))
        yield f"  {TITLES[part]:<18} {found['n']:>6}{figures}"
    yield f"  tokens/s           {result['tokens_per_s']:.1f}"
    yield f"  load               {result['load_s']:.2f} s"
    memory = result["memory_mib"]
    if memory["peak"] is not None:
        yield (
            f"  memory             {memory['peak']:.0f} MiB at its peak, {memory['loaded']:.0f} with all loaded, "
            f"{memory['before']:.0f} before (the interpreter, its libraries, the inputs)"
        )
    yield f"  growth             {growth(result['leak'])}"


def growth(leak: dict[str, Any] | None) -> str:
    if leak is None:
        return "not known: fewer than 50 generations, or a system without /proc"
    verdict = "none" if leak["passed"] else "MEMORY GROWS"
    share, bound = f"{100 * leak['growth']:+.2f} %", f"at most {100 * leak['bound']:g} %"
    allocated = f"of the {leak['allocated_mib'][0]:.0f} MiB that it has allocated"
    return f"{verdict}: {share} {allocated}, {bound}; {leak['kib_per_generation']:+.2f} KiB a generation"
