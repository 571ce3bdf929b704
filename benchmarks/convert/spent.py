"""What a command costs: seconds, and the most memory that it or one of its children held."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Spent:
    """wall, cpu: seconds, user and system; of the process and all that it waited for. peak: MiB, of the largest single
    process among them. out: standard output."""

    wall: float
    cpu: float
    peak: float
    out: str

    def told(self) -> dict[str, Any]:
        """The JSON object in the last line of the output: what our scripts measured themselves."""
        return json.loads(self.out.strip().splitlines()[-1])


def spend(
    words: Sequence[str | Path], folder: Path, threads: int = 1, expected: Sequence[int] = (0,), **extra: str
) -> Spent:
    """Run a command to its end, and nothing else at the time. Raises SystemExit where it fails.

    The kernel counts this process's own memory as the child's until that starts its program: import nothing large here.
    """
    environment = environment_for(threads) | extra
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            [str(word) for word in words], cwd=folder, env=environment, stdout=out, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, errors):
            stream.seek(0)
            texts.append(stream.read())
    if process.returncode not in expected:
        tail = "\n".join("".join(texts).splitlines()[-30:])
        raise SystemExit(f"{' '.join(map(str, words))} ended with {process.returncode}:\n{tail}")
    return Spent(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, texts[0])


def script(name: str, *arguments: str | Path, python: Path | None = None) -> list[str]:
    """The command line of a module of this package, in this Python or another."""
    return [str(python or sys.executable), "-m", f"convert.{name}", *map(str, arguments)]


def environment_for(threads: int) -> dict[str, str]:
    """This process's environment, in which `tapeout` and this package are found."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    sources = os.pathsep.join([str(REPOSITORY / "benchmarks"), str(REPOSITORY)])
    return {**os.environ, "PATH": path, "PYTHONPATH": sources, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def size_mib(path: Path) -> float:
    """Of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files) / 2**20
