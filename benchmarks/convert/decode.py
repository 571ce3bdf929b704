"""Decoding on the CPU: our ONNX files beside onnxruntime-genai's, and the Core ML reference executor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engine.figures import Figure

from convert.spent import REPOSITORY, script, spend

PROMPT, STEPS, THREADS = 64, 64, 2
EXECUTOR_STEPS = 8
REFERENCE_CONTEXT = 256


@dataclass
class Runs:
    """What the runs of one side told; each in a fresh process."""

    told: list[dict[str, Any]]

    @property
    def step(self) -> float:
        """Median seconds of a decode step, over all runs."""
        return median(seconds for each in self.told for seconds in each["steps"])

    def of(self, key: str) -> float:
        return median(float(each[key]) for each in self.told)


def decode(folder: Path, python: Path, repeats: int) -> list[Figure]:
    """The two folders that builds.onnx left, in turn, so that what else the machine does falls on all alike."""
    ours, usual = folder / "onnx/model", folder / "genai"
    commands = {
        "genai, its builder's model": script("decode_genai", usual, *sizes(STEPS), python=python),
        "genai, our folder": script("decode_genai", ours, *sizes(STEPS), python=python),
        "our session": script("decode_ours", ours, *sizes(STEPS)),
    }
    found = in_turn(commands, repeats)
    peer, same, own = found.values()
    agreed = same.told[0]["tokens"] == own.told[0]["tokens"]
    how = f"a prompt of {PROMPT} tokens, then {STEPS}; {THREADS} threads, fresh processes in turn, {repeats} of each"
    figures = []
    for name, runs in found.items():
        target = None if runs is peer else 1 / peer.step
        figures.append(Figure(f"decode: {name}", 1 / runs.step, "tokens/s", f"median step; {how}", target, False))
    for name, runs in found.items():
        figures.append(Figure(f"  prompt, {name}", 1000 * runs.of("prompt"), "ms", f"{PROMPT} tokens at once"))
        figures.append(Figure(f"  load, {name}", runs.of("load"), "s", "until the first call"))
    for name, runs in found.items():
        target = None if runs is peer else peer.of("peak")
        figures.append(Figure(f"memory: {name}", runs.of("peak"), "MiB", "peak resident of the process", target))
        figures.append(Figure("  at the end", runs.of("now"), "MiB", "resident after the last step"))
    figures.append(Figure("speed, our session / peer", peer.step / own.step, "", "aim: 1.2", 1.0, False))
    figures.append(Figure("speed, genai on our folder / peer", peer.step / same.step, "", "one runtime", 1.0, False))
    figures.append(Figure("the same tokens", float(agreed), "", "genai on our folder and our own loop", 1.0, False))
    return figures


def executor(folder: Path, repeats: int) -> list[Figure]:
    """The 0.5B decoder that builds.coreml left; then the reference model on both runtimes, in turn."""
    large = in_turn({"large": script("decode_ours", folder / "coreml/model", *sizes(EXECUTOR_STEPS))}, 1)["large"]
    for runtime in ("coreml", "onnx"):
        checkpoint = REPOSITORY / "artifacts/reference"
        spend(script("ours", runtime, checkpoint, folder / f"small-{runtime}", str(REFERENCE_CONTEXT)), folder)
    small = in_turn(
        {
            runtime: script("decode_ours", folder / f"small-{runtime}/model", *sizes(STEPS, threads=1))
            for runtime in ("coreml", "onnx")
        },
        repeats,
        threads=1,
    )
    ratio = small["coreml"].step / small["onnx"].step
    both = ", ".join(f"{name} {1000 * runs.step:.2f} ms" for name, runs in small.items())
    return [
        Figure("executor, 0.5B: load", large.of("load"), "s", f"a fresh process, {THREADS} threads", 15),
        Figure("executor, 0.5B: decode step", large.step, "s", f"median of {EXECUTOR_STEPS}", 2),
        Figure("executor, 0.5B: memory", large.of("peak"), "MiB", "peak resident", 3072),
        Figure("  prompt", large.of("prompt"), "s", f"{PROMPT} tokens"),
        Figure("executor / ONNX Runtime, reference model", ratio, "", f"decode step, one thread; {both}; aim: 3", 10),
    ]


def sizes(steps: int, threads: int = THREADS) -> list[str]:
    return [str(PROMPT), str(steps), str(threads)]


def in_turn(commands: Mapping[str, Sequence[str]], repeats: int, threads: int = THREADS) -> dict[str, Runs]:
    found = {name: Runs([]) for name in commands}
    for _ in range(repeats):
        for name, words in commands.items():
            found[name].told.append(spend(words, REPOSITORY, threads).told())
    return found
