"""Local worker processes: started when first needed, kept warm, replaced when killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pipelines
from pipelines.errors import WorkerError
from pipelines.execute import Outcome, Report, Task

# What the bytes of a result must not depend on: threads, hash seeds, time zones, vector widths.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


@dataclass
class Worker:
    """A process, our end of the line to it, and what it is doing."""

    process: subprocess.Popen[bytes]
    line: Connection
    task: Task | None = None
    since: float = 0.0


class LocalExecutor:
    """As many processes as `jobs`, in `root`."""

    def __init__(self, root: Path, jobs: int) -> None:
        self.root = root
        self.jobs = jobs
        self.workers: list[Worker] = []

    def free(self) -> int:
        return self.jobs - sum(worker.task is not None for worker in self.workers)

    def submit(self, task: Task) -> None:
        idle = [worker for worker in self.workers if worker.task is None]
        worker = idle[0] if idle else self._start(task)
        worker.task, worker.since = task, time.monotonic()
        try:
            worker.line.send(task)
        except OSError:  # it died while idle; `wait` will find it, so give the task to a new one
            self._forget(worker)
            self.submit(task)

    def wait(self) -> list[Outcome | Report]:
        """See Executor. Looks after the processes twice a second, for a line may outlive its process."""
        found: list[Outcome | Report] = []
        while not found:
            heard = wait([worker.line for worker in self.workers], timeout=0.5)
            for worker in list(self.workers):
                if worker.line in heard:
                    found += self._receive(worker)
                elif worker.process.poll() is not None:
                    found += self._lost(worker)
        return found

    def close(self) -> None:
        for worker in self.workers:
            worker.line.close()
            if worker.task is not None:
                worker.process.terminate()
        for worker in self.workers:
            try:
                worker.process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self.workers.clear()

    def _start(self, task: Task) -> Worker:
        ours, theirs = socket.socketpair()
        package_home = str(Path(pipelines.__file__).parent.parent)
        paths = [*task.import_roots, package_home, os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.worker", str(theirs.fileno())],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        worker = Worker(process, Connection(ours.detach()))
        self.workers.append(worker)
        return worker

    def _receive(self, worker: Worker) -> list[Outcome | Report]:
        try:
            message: Outcome | Report = worker.line.recv()
        except (EOFError, OSError):
            return self._lost(worker)
        if isinstance(message, Outcome):
            worker.task = None
        return [message]

    def _lost(self, worker: Worker) -> list[Outcome | Report]:
        self._forget(worker)
        status = worker.process.wait()
        if worker.task is None:
            return []
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        error = WorkerError(
            f"{worker.task.node}: its worker process {how}",
            hint=f"if memory ran out, build with --jobs 1; its log: {worker.task.log}",
        )
        return [Outcome.of(worker.task.node, time.monotonic() - worker.since, error)]

    def _forget(self, worker: Worker) -> None:
        worker.line.close()
        self.workers.remove(worker)
