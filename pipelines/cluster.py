"""The same plan on a Ray cluster. Ray itself lives in a process of its own beside the build: pipelines.ray_driver.

There its threads, signal handlers and messages cannot reach the build; when it dies, it is started again, and what ran
counts as lost.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pipelines
from pipelines.config import Config, RayConfig
from pipelines.errors import ConfigError, WorkerError
from pipelines.execute import Needs, Outcome, Report, Task
from pipelines.files import storing
from pipelines.plan import code_of
from pipelines.project import Project
from pipelines.workers import LocalExecutor, free_cores, free_memory

STARTING = 90.0  # s in which a cluster has to answer; a local one takes 5 to 10 on two slow cores
ENDING = 10.0  # s for Ray's processes to end by themselves
SHARED = "shared"  # as `store`: every machine sees the project's folder


@dataclass(frozen=True)
class Setup:
    """What the driver process has to know. runs, reads: of all stages. folder: for Ray's own files; short, because
    sockets lie in it."""

    project: Project
    config: RayConfig
    runs: tuple[str, ...]
    reads: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Size:
    """What the machines of the cluster have together, said when the driver process is ready and when it changes."""

    cpus: float
    memory_mib: float


@dataclass(frozen=True)
class Refused:
    """Why the driver process could not begin."""

    message: str
    hint: str


class RayExecutor:
    """See Executor. Tasks that read files of this machine run here, where machines share no folder."""

    one_machine = False

    def __init__(self, project: Project, config: Config) -> None:
        """Connect to the cluster, or start one. Raises ConfigError."""
        assert isinstance(config.executor, RayConfig)
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("executor=ray needs Ray, which is not installed", hint="pip install 'tapeout[ray]'")
        stages = config.pipeline.stages.values()
        runs = [name for stage in stages for name in (stage.run, *stage.calls)]
        runs += [config.pipeline.schemas] if config.pipeline.schemas else []
        runs += [f"{module}.*" for stage in stages for module in code_of(config, stage)]
        reads = [pattern for stage in stages for pattern in stage.reads]
        self.project = project
        self.folder = Path(tempfile.mkdtemp(prefix="tapeout-ray-", dir="/tmp" if os.path.isdir("/tmp") else None))
        self.setup = Setup(project, config.executor, tuple(runs), tuple(reads), self.folder)
        self.shared = config.executor.store == SHARED
        self.local = LocalExecutor(project.root, free_cores(), free_memory())
        self.queue: list[Task] = []  # for `local`
        self.tasks: dict[str, tuple[Task, float]] = {}  # given to Ray, and when
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def room(self, needs: Needs) -> bool:
        """See Executor. Ray finds the place; one task more than fits is given to it, so that an autoscaler sees it."""
        running = [task.needs for task, _ in self.tasks.values()]
        cpus, memory = sum(each.cpus for each in running), sum(each.memory_mib for each in running)
        return not self.queue and cpus <= self.size.cpus and memory <= self.size.memory_mib

    def submit(self, task: Task) -> None:
        """See Executor. Raises WorkerError where the cluster was lost and cannot be had again."""
        if task.local and not self.shared:
            self.queue.append(task)
            self._run_local()
            return
        self.tasks[task.node] = task, time.monotonic()
        try:
            if self.process is None:
                self._start()
            self.line.send(task)
        except ConfigError as error:
            raise WorkerError(f"the Ray cluster was lost: {error.message}", hint=error.hint) from error
        except OSError:
            pass  # `wait` finds out that the process has ended

    def wait(self) -> list[Outcome | Report]:
        found: list[Outcome | Report] = []
        while not found:
            busy = any(worker.task for worker in self.local.workers)
            if self.process is not None:
                found += self._hear(0.0 if busy else 0.5)
            if busy:
                found += self.local.wait(0.1)
            self._run_local()
        return found

    def close(self) -> None:
        self.local.close()
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        """Start the driver process and wait until it has the cluster. Raises ConfigError."""
        self._end()
        log = self.project.state / "logs" / "ray.log"
        with storing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            output = open(log, "wb")  # noqa: SIM115 (closed below)
        ours, theirs = socket.socketpair()
        home = str(Path(pipelines.__file__).parent.parent)
        roots = [*map(str, self.project.import_roots), home, os.environ.get("PYTHONPATH", "")]
        own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(self.folder), "RAY_DISABLE_IMPORT_WARNING": "1"}
        self.line = Connection(ours.detach())
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.ray_driver", str(theirs.fileno()), str(os.getpid())],
            env={**os.environ, **own, "PYTHONPATH": os.pathsep.join(filter(None, roots))},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a process group of Ray's own, which can be ended as one
        )
        output.close()
        theirs.close()
        try:
            self.line.send(self.setup)
            answer = self.line.recv() if self.line.poll(STARTING) else None
        except (OSError, EOFError):
            answer = Refused("Ray's driver process ended", f"its messages: {log}")
        if isinstance(answer, Size):
            self.size = answer
            return
        if not isinstance(answer, Refused):
            answer = Refused(f"Ray did not answer within {STARTING:.0f} s", f"its messages: {log}")
            self.process.kill()
        self._end()
        where = f"executor.address={self.setup.config.address}" if self.setup.config.address else "a local Ray cluster"
        raise ConfigError(f"{where}: {answer.message}", hint=answer.hint)

    def _hear(self, seconds: float) -> list[Outcome | Report]:
        assert self.process is not None
        try:
            if not self.line.poll(seconds):
                return [] if self.process.poll() is None else self._lost()
            message: Outcome | Report | Size = self.line.recv()
        except (OSError, EOFError):
            return self._lost()
        if isinstance(message, Size):
            self.size = message
            return []
        if isinstance(message, Outcome):
            self.tasks.pop(message.node, None)
        return [message]

    def _lost(self) -> list[Outcome | Report]:
        """Return the outcomes of all that ran when the driver process ended; with it, the cluster's work ends."""
        self._end()
        log = self.project.state / "logs" / "ray.log"
        lost = [
            Outcome.of(
                name,
                time.monotonic() - since,
                WorkerError(f"{name}: the connection with the Ray cluster was lost", hint=f"Ray's messages: {log}"),
                lost=True,
            )
            for name, (_, since) in self.tasks.items()
        ]
        self.tasks.clear()
        return list(lost)

    def _end(self) -> None:
        """End the driver process, and with it a cluster that it has started."""
        if self.process is None:
            return
        self.line.close()
        try:
            self.process.wait(timeout=ENDING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(OSError):  # Ray's agents outlive a local node that was killed
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None

    def _run_local(self) -> None:
        while self.queue and self.local.room(self.queue[0].needs):
            self.local.submit(self.queue.pop(0))
