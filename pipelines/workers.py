"""Local worker processes: started when first needed, kept warm, replaced when killed."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pipelines
from pipelines.errors import WorkerError
from pipelines.execute import Needs, Outcome, Report, Stale, Task
from pipelines.worker import log_tail

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
    """A process, our end of the line to it, what it is doing, and what it has run: its imports are done.

    It leads a process group of its own, which what a stage starts belongs to and which is ended with it. When the build
    itself is killed (SIGKILL), the kernel ends the worker; what its stage has started may go on until it is done.
    """

    process: subprocess.Popen[bytes]
    line: Connection
    task: Task | None = None
    since: float = 0.0
    ran: set[str] = field(default_factory=set)


class LocalExecutor:
    """Processes in `root` that together take up to `jobs` cores and `memory_mib`."""

    one_machine = True

    def __init__(self, root: Path, jobs: int, memory_mib: int) -> None:
        self.root = root
        self.jobs = jobs
        self.memory_mib = memory_mib
        self.workers: list[Worker] = []
        self._looked = 0.0

    def room(self, needs: Needs) -> bool:
        running = [worker.task.needs for worker in self.workers if worker.task is not None]
        cpus = sum(each.cpus for each in running)
        memory = sum(each.memory_mib for each in running)
        return not running or (cpus + needs.cpus <= self.jobs and memory + needs.memory_mib <= self.memory_mib)

    def submit(self, task: Task) -> None:
        idle = [worker for worker in self.workers if worker.task is None]
        self._give(max(idle, key=lambda each: task.run in each.ran) if idle else self._start(task), task)

    def _give(self, worker: Worker, task: Task) -> None:
        worker.task, worker.since = task, time.monotonic()
        worker.ran.add(task.run)
        try:
            worker.line.send(task)
        except OSError:  # it died while idle; `wait` will find it, so give the task to a new one
            self._forget(worker)
            self.submit(task)

    def wait(self, patience: float = math.inf) -> list[Outcome | Report]:
        """See Executor. Returns nothing when nothing has happened within `patience` seconds.

        Looks after the processes twice a second, for a line may outlive its process.
        """
        found: list[Outcome | Report] = []
        until = time.monotonic() + patience
        while not found and (left := until - time.monotonic()) > 0:
            heard = wait([worker.line for worker in self.workers], timeout=min(0.5, left))
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
                end_group(worker.process, signal.SIGTERM)
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=3)
            end_group(worker.process, signal.SIGKILL)
            worker.process.wait()
        self.workers.clear()

    def _start(self, task: Task) -> Worker:
        ours, theirs = socket.socketpair()
        package_home = str(Path(pipelines.__file__).parent.parent)
        paths = [*task.import_roots, package_home, os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.worker", str(theirs.fileno()), str(os.getpid())],
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            process_group=0,
        )
        theirs.close()
        worker = Worker(process, Connection(ours.detach()))
        self.workers.append(worker)
        return worker

    def _receive(self, worker: Worker) -> list[Outcome | Report]:
        try:
            message: Outcome | Report | Stale = worker.line.recv()
        except (EOFError, OSError):
            return self._lost(worker)
        except Exception as error:  # whatever unpickling can raise
            return self._lost(worker, f"sent what cannot be read: {type(error).__name__}: {error}")
        if isinstance(message, Stale):
            task = worker.task
            assert task is not None
            self._forget(worker)
            end_group(worker.process, signal.SIGKILL)
            worker.process.wait()
            self._give(self._start(task), task)
            return []
        if isinstance(message, Outcome):
            worker.task = None
        return [message]

    def _lost(self, worker: Worker, how: str = "") -> list[Outcome | Report]:
        """Give up a worker that ends or, as `how` says, makes no sense; and all that its stages have started."""
        self._forget(worker)
        if not how:
            try:
                status = worker.process.wait(timeout=3)
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            except subprocess.TimeoutExpired:
                how = "closed its line to the build"
        end_group(worker.process, signal.SIGKILL)
        worker.process.wait()
        if worker.task is None:
            return []
        error = WorkerError(f"{worker.task.node}: its worker process {how}", hint="if memory ran out: --jobs 1")
        seconds = time.monotonic() - worker.since
        return [Outcome.of(worker.task.node, seconds, error, log_tail(worker.task.log), lost=True)]

    def _forget(self, worker: Worker) -> None:
        worker.line.close()
        self.workers.remove(worker)


def end_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a worker and to all that its stages have started and left in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def free_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Return how much memory new processes could take, in MiB: of the machine, or of the control group around us."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) << 10)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(min(free), 0) >> 20
