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
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pipelines
from pipelines.errors import WorkerError
from pipelines.execute import Needs, Outcome, Report, Stale, Task
from pipelines.items import Items, Piece
from pipelines.mapping import Call, Cancel, Want
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
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


@dataclass
class Worker:
    """A process, our end of the line to it, what it is doing, and what it has run: its imports are done.

    piece: the item of a map that it works on, with its task. served: the node whose items it has worked on, with which
    it ends: what the items' function has kept in memory is of no use to others.

    It leads a process group of its own, which what a stage starts belongs to and which is ended with it. When the build
    itself is killed (SIGKILL), the kernel ends the worker; what its stage has started may go on until it is done.
    """

    process: subprocess.Popen[bytes]
    line: Connection
    task: Task | None = None
    since: float = 0.0
    ran: set[str] = field(default_factory=set)
    piece: Piece | None = None
    served: str = ""


class LocalExecutor:
    """Processes in `root` that together take up to `jobs` cores and `memory_mib`.

    calls: whether it also runs what stages map; else whoever has it looks after `items`.
    """

    one_machine = True

    def __init__(self, root: Path, jobs: int, memory_mib: int, calls: bool = True) -> None:
        self.root = root
        self.jobs = jobs
        self.memory_mib = memory_mib
        self.calls = calls
        self.items = Items()
        self.workers: list[Worker] = []
        self._mapped = False  # a map has made room since `wait` began, or could

    def room(self, needs: Needs) -> bool:
        busy = [worker for worker in self.workers if worker.task is not None]
        return not busy or (not any(map(is_retrial, busy)) and self._fits(busy, needs))

    def submit(self, task: Task) -> None:
        self._place(task, None)

    def _place(self, task: Task, piece: Piece | None) -> None:
        """Give a task to the idle process that knows most of it, or to a new one. A process that serves a stage's items
        ends with that stage, and so is given no other stage."""
        idle = [worker for worker in self.workers if worker.task is None and (piece or not worker.served)]
        served = task.node if piece else ""
        chosen = max(idle, key=lambda each: (task.run in each.ran, each.served == served), default=None)
        self._give(chosen or self._start(task), task, piece)

    def _give(self, worker: Worker, task: Task, piece: Piece | None) -> None:
        worker.task, worker.piece, worker.since = task, piece, time.monotonic()
        worker.served = task.node if piece else worker.served
        worker.ran.add(task.run)
        try:
            worker.line.send(task)
        except OSError:  # it died while idle; `wait` will find it, so give the task to a new one
            self._forget(worker)
            self._place(task, piece)

    def _fits(self, busy: list[Worker], needs: Needs) -> bool:
        """Say whether there is room beside `busy`. A stage that waits for what it maps takes memory, but no core."""
        tasks = [(worker.task.needs, self._waits(worker)) for worker in busy if worker.task is not None]
        cpus = sum(each.cpus for each, waits in tasks if not waits)
        memory = sum(each.memory_mib for each, _ in tasks)
        return cpus + needs.cpus <= self.jobs and memory + needs.memory_mib <= self.memory_mib

    def _waits(self, worker: Worker) -> bool:
        return worker.task is not None and worker.piece is None and self.items.waits(worker.task.node)

    def _start_pieces(self) -> None:
        """Start what there is room for. One piece may always run, however much it needs; one that was lost, alone."""
        while self.calls:
            busy = [worker for worker in self.workers if worker.task is not None]
            active = [worker for worker in busy if not self._waits(worker)]
            if any(map(is_retrial, active)):
                return
            fitting = (
                piece
                for piece in self.items.next()
                if not active or (not piece.tries and self._fits(busy, piece.task.needs))
            )
            piece = next(fitting, None)
            if piece is None:
                return
            self.items.begin(piece)
            self._place(piece.task, piece)

    def answer(self) -> None:
        """Send stages that wait what has come of their items."""
        for node, answers in self.items.answers():
            for worker in self.workers:
                if worker.piece is None and worker.task is not None and worker.task.node == node:
                    with contextlib.suppress(OSError):  # it died; `wait` will find it
                        worker.line.send(answers)

    def wait(self, patience: float = math.inf) -> list[Outcome | Report]:
        """See Executor. Returns nothing when nothing has happened within `patience` seconds, or when a map leaves room.

        Looks after the processes twice a second, for a line may outlive its process.
        """
        found: list[Outcome | Report] = []
        until = time.monotonic() + patience
        self._mapped = False
        while not found and not self._mapped and (left := until - time.monotonic()) > 0:
            heard = wait([worker.line for worker in self.workers], timeout=min(0.5, left))
            for worker in list(self.workers):
                if worker not in self.workers:  # ended with the stage that it served
                    continue
                if worker.line in heard:
                    found += self._receive(worker)
                elif worker.process.poll() is not None:
                    found += self._lost(worker)
            self.answer()
            self._start_pieces()
            if self.calls and self.items.next():
                self._mapped = False  # there is no room: it waits itself
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
            message: Outcome | Report | Stale | Call | Want | Cancel = worker.line.recv()
        except (EOFError, OSError):
            return self._lost(worker)
        except Exception as error:  # whatever unpickling can raise
            return self._lost(worker, f"sent what cannot be read: {type(error).__name__}: {error}")
        task, piece = worker.task, worker.piece
        if isinstance(message, Stale):
            assert task is not None
            self._end(worker)
            self._give(self._start(task), task, piece)
            return []
        if isinstance(message, Call | Want | Cancel):
            assert task is not None
            self._mapped = True
            self.items.take(task, message)
            if isinstance(message, Cancel):
                self.release(lambda each: each.piece is not None and each.piece.id == message.id)
            return []
        if not isinstance(message, Outcome):
            return [message]
        worker.task = worker.piece = None
        return self._ended(piece, message)

    def _ended(self, piece: Piece | None, outcome: Outcome) -> list[Outcome | Report]:
        """Take in what has come of a piece or of a stage, with which all that served it ends."""
        if piece is not None:
            self._mapped = True
            self.items.end(piece, outcome)
            return []
        self.release(lambda each: each.served == outcome.node)
        return [self.items.conclude(outcome)]

    def release(self, ends: Callable[[Worker], bool]) -> None:
        """End the processes that are of no use any more. They work on items or are idle, and keep nothing."""
        for worker in [worker for worker in self.workers if ends(worker)]:
            self._end(worker)

    def _end(self, worker: Worker) -> None:
        self._forget(worker)
        end_group(worker.process, signal.SIGKILL)
        worker.process.wait()

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
        error = WorkerError(f"{worker.task.title}: its worker process {how}", hint="if memory ran out: --jobs 1")
        seconds = time.monotonic() - worker.since
        tail = log_tail(worker.task.log) if worker.piece is None else ""
        return self._ended(worker.piece, Outcome.of(worker.task.node, seconds, error, tail, lost=True))

    def _forget(self, worker: Worker) -> None:
        worker.line.close()
        self.workers.remove(worker)


def is_retrial(worker: Worker) -> bool:
    """Say whether a process works on an item whose process was lost: for want of memory, it may be."""
    return worker.piece is not None and worker.piece.tries > 1


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
