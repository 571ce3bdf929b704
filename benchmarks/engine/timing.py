"""What a command costs: CPU seconds of its whole process tree, and wall seconds."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from engine.projects import REPOSITORY

LOOPS = {  # about two seconds each of one thread: the interpreter's kind of work, and that of kernels
    "interpreter": "x = 0\nfor i in range(20_000_000):\n    x ^= i",
    "torch": "import torch\ntorch.set_num_threads(1)\na = torch.rand(384, 384)\n"
    "for _ in range(2500):\n    a = torch.softmax(a @ a, 1)",
}


@dataclass(frozen=True)
class Cost:
    """cpu: user and system seconds of a process and all that it waited for. wall: seconds. out: its standard output."""

    cpu: float
    wall: float
    out: str = ""


def spend(words: Sequence[str], folder: Path, extra: Mapping[str, str] | None = None) -> Cost:
    """Run a command to its end, and nothing else at the time. Raises SystemExit where it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, cwd=folder, env=environment(extra), capture_output=True, text=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} in {folder} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return Cost(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall, done.stdout)


def spend_together(words: Sequence[str], folders: Sequence[Path], extra: Mapping[str, str] | None = None) -> float:
    """Run the command in all folders at once; return the wall seconds until the last has ended."""
    started = time.monotonic()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(words, cwd=folder, env=environment(extra), **quiet) for folder in folders]
    if any([process.wait() for process in running]):
        raise SystemExit(f"{' '.join(words)} failed in one of {', '.join(map(str, folders))}")
    return time.monotonic() - started


def ceiling(loop: str) -> float:
    """How much faster two processes get through two of the LOOPS at once than one after the other; ideally 2.

    What both need to start is in both figures.
    """
    words, here = [sys.executable, "-c", LOOPS[loop]], Path.cwd()
    alone = sum(spend_together(words, [here]) for _ in range(2))
    return alone / spend_together(words, [here, here])


def tapeout(*words: str) -> list[str]:
    """Return the command line of a `tapeout` command."""
    return [str(Path(sys.executable).with_name("tapeout")), *words]


def environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment with one thread a process, in which `tapeout` and `dvc` are found."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours = {"PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **ours, **(extra or {})}


def middle(costs: Sequence[Cost], kind: str = "cpu") -> float:
    """Return the median of the costs' CPU or wall seconds."""
    return median(getattr(cost, kind) for cost in costs)
