"""The process that speaks with Ray for a build: `python -m pipelines.ray_driver FD PARENT`. Ray is imported here only.

A task is one remote call of pipelines.ray_worker.run_errand, a generator: what it yields are the task's progress and,
last, its outcome. Ray tries nothing again by itself; the build does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from pipelines.cluster import SHARED, STARTING, Refused, Setup, Size
from pipelines.digests import Digests
from pipelines.errors import StageError, TapeoutError
from pipelines.execute import Outcome, Report, Task
from pipelines.ray_items import failure
from pipelines.ray_worker import Begun, Errand, Returned, run_errand
from pipelines.transport import Remote, pack_code, remote_settings
from pipelines.tree import read_tree
from pipelines.worker import leave_with_parent, log_tail
from pipelines.workers import free_cores, free_memory

OBJECTS = 80 << 20  # bytes of a local node's object store; nothing large goes through it
LOOK = 2.0  # s between two looks at which machines there are
PATIENCE = 30.0  # s in which a machine that a waiting task needs may come back


def main() -> None:
    """Run tasks as they come down the line, until it is closed."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the build's to handle
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end of the line is the end: Ray then stops in good order
    threading.Thread(target=leave_with_parent, args=(int(sys.argv[2]), STARTING), daemon=True).start()
    with Connection(descriptor) as line:
        setup: Setup = line.recv()
        try:
            with connected(setup) as remote:
                Driver(setup, remote, line).serve()
        except TapeoutError as error:
            line.send(Refused(error.message, error.hint))


@contextlib.contextmanager
def connected(setup: Setup) -> Iterator[dict[str, Any] | None]:
    """Connect Ray to a running cluster, or to one started here that ends with this process.

    Yields the settings of the DVC remote through which artifacts move, or None. Raises TapeoutError.
    """
    remote: dict[str, Any] | None = None
    environment: dict[str, Any] = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
    if setup.config.store != SHARED:
        remote = remote_settings(setup.project, setup.config.store)
        code = setup.folder / "code"
        pack_code(setup.project, setup.runs, setup.reads, code)
        environment = {"working_dir": str(code)}
    with contextlib.ExitStack() as stack:
        address = setup.config.address
        try:
            if address is None:
                address = stack.enter_context(local_cluster(setup))
            else:
                knock(address)
            ray.init(
                address=address,
                runtime_env=environment,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
            )
        except (RayError, OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            hint = "is the cluster running? 'ray status' says; null starts one here"
            raise StageError(f"Ray cannot connect: {text}", hint=hint) from error
        stack.callback(ray.shutdown)
        yield remote


def knock(address: str) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()


@contextlib.contextmanager
def local_cluster(setup: Setup) -> Iterator[str]:
    """Start a cluster whose nodes share this machine's cores and free memory evenly; yield its address."""
    from ray.cluster_utils import Cluster

    (setup.folder / "ray").mkdir(exist_ok=True)  # Ray notes the cluster's address there
    nodes = setup.config.local_nodes
    share = {"num_cpus": max(1, free_cores() // nodes), "memory": (free_memory() << 20) // nodes}
    cluster = Cluster()
    try:
        for _ in range(nodes):
            cluster.add_node(
                wait=False,
                object_store_memory=OBJECTS,
                include_dashboard=False,
                include_log_monitor=False,
                no_monitor=True,
                **share,
            )
        cluster.wait_for_nodes()
        yield str(cluster.address)
    finally:
        cluster.shutdown()


class Driver:
    """Gives tasks to Ray and sends what comes of them up the line. remote: settings of the DVC remote, or None."""

    def __init__(self, setup: Setup, remote: dict[str, Any] | None, line: Connection) -> None:
        self.setup = setup
        self.remote = remote
        self.line = line
        self.call = ray.remote(max_retries=0, num_returns="streaming")(run_errand)
        self.running: list[tuple[Any, Task, float]] = []  # generators, their tasks, when they were given to Ray
        self.waiting: dict[str, float] = {}  # tasks that have found no place yet: when a machine for them was last seen
        self.moving = 0
        self.moved: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.digests = Digests(Path(os.devnull))
        self.looked = 0.0
        self.nodes: list[dict[str, float]] = []

    def serve(self) -> None:
        """Work until the line is closed."""
        self.look()
        while True:
            busy = bool(self.running or self.moving)
            while self.line.poll(0 if busy else None):
                try:
                    task = self.line.recv()
                except (EOFError, OSError):
                    return
                self.take(task)
                busy = True
            self.gather()
            while not self.moved.empty():
                self.moved.get()()
            if time.monotonic() - self.looked > LOOK:
                self.look()

    def take(self, task: Task) -> None:
        """Start a task, or send its inputs on their way first."""
        self.look()
        if not self.fits(task):
            self.end_unfit(task)
        elif self.remote is None:
            self.launch(Errand(task, None, {}))
        else:
            self.in_background(task, partial(self.send_inputs, task))

    def launch(self, errand: Errand) -> None:
        needs = errand.task.needs
        options = {"num_cpus": needs.cpus, "memory": (needs.memory_mib << 20) or None, "name": errand.task.node}
        generator = self.call.options(**options).remote(errand)
        self.waiting[errand.task.node] = time.monotonic()
        self.running.append((generator, errand.task, time.monotonic()))

    def gather(self) -> None:
        """Pass on what the running tasks have said."""
        if not self.running:
            if self.moving:
                time.sleep(0.05)
            return
        generators = [generator for generator, _, _ in self.running]
        ready, _ = ray.wait(generators, num_returns=len(generators), timeout=0.0)
        if not ready:
            ready, _ = ray.wait(generators, num_returns=1, timeout=0.1)
        for entry in [entry for entry in self.running if any(entry[0] is each for each in ready)]:
            generator, task, since = entry
            try:
                message = ray.get(next(generator))
            except StopIteration:
                message = Outcome(task.node, 0.0, f"{task.node} ended without a result on the cluster")
            except RayError as error:
                message = failure(task, time.monotonic() - since, error)
            self.hear(entry, message)

    def hear(self, entry: tuple[Any, Task, float], message: Begun | Report | Returned | Outcome) -> None:
        """Take in what a task has said."""
        _, task, _ = entry
        if isinstance(message, Begun):
            self.waiting.pop(task.node, None)
        elif isinstance(message, Report):
            self.line.send(message)
        else:
            self.waiting.pop(task.node, None)
            self.running.remove(entry)
            if isinstance(message, Returned):
                self.in_background(task, partial(self.bring_output, task, message))
            else:
                self.line.send(message)

    def send_inputs(self, task: Task) -> Callable[[], None]:
        """Bring the inputs to the remote; return the task's launch."""
        assert self.remote is not None
        remote, trees = Remote(self.remote), {}
        for parameter, folder in task.inputs.items():
            trees[parameter] = read_tree(folder, self.digests)
            remote.push(folder, trees[parameter])
        return partial(self.launch, Errand(task, self.remote, trees))

    def bring_output(self, task: Task, returned: Returned) -> Callable[[], None]:
        """Bring a task's artifact, log and measurements here; return the sending of its outcome."""
        assert self.remote is not None
        task.log.write_bytes(returned.log)
        if returned.metrics:
            task.metrics.parent.mkdir(parents=True, exist_ok=True)
            task.metrics.write_bytes(returned.metrics)
        outcome = returned.outcome
        if returned.tree is not None:
            Remote(self.remote).fetch(returned.tree, task.out)
        elif not outcome.passed:
            outcome = replace(outcome, tail=log_tail(task.log))
        return partial(self.line.send, outcome)

    def in_background(self, task: Task, move: Callable[[], Callable[[], None]]) -> None:
        """Move files in a thread; what `move` returns is then called in this one."""
        self.moving += 1
        since = time.monotonic()

        def work() -> None:
            try:
                then = move()
            except (TapeoutError, OSError) as error:
                known = error if isinstance(error, TapeoutError) else StageError(f"{task.node}: {error}")
                then = partial(self.line.send, Outcome.of(task.node, time.monotonic() - since, known))
            self.moved.put(partial(self.arrived, then))

        threading.Thread(target=work, daemon=True).start()

    def arrived(self, then: Callable[[], None]) -> None:
        self.moving -= 1
        then()

    def look(self) -> None:
        """See which machines there are; give up the tasks that none of them has been able to hold for a while."""
        self.looked = time.monotonic()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if nodes != self.nodes or not self.nodes:
            self.nodes = nodes
            cpus, memory = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "memory"))
            self.line.send(Size(cpus, memory / 2**20))
        for entry in list(self.running):
            generator, task, _ = entry
            if task.node in self.waiting and self.fits(task):
                self.waiting[task.node] = self.looked
            elif task.node in self.waiting and self.looked - self.waiting[task.node] > PATIENCE:
                ray.cancel(generator)
                self.running.remove(entry)
                del self.waiting[task.node]
                self.end_unfit(task)

    def fits(self, task: Task) -> bool:
        """Say whether any machine could hold the task, were it empty."""
        cpus, memory = task.needs.cpus, task.needs.memory_mib << 20
        return any(node.get("CPU", 0.0) >= cpus and node.get("memory", 0.0) >= memory for node in self.nodes)

    def end_unfit(self, task: Task) -> None:
        cpus = max((node.get("CPU", 0.0) for node in self.nodes), default=0.0)
        memory = max((node.get("memory", 0.0) for node in self.nodes), default=0.0) / 2**20
        error = StageError(
            f"{task.node} needs {task.needs.cpus} cores and {task.needs.memory_mib} MiB on one machine; the most that"
            f" one of the Ray cluster's {len(self.nodes)} has is {cpus:g} cores and {memory:.0f} MiB",
            hint="add a larger machine to the cluster, or change the stage's `resources`",
        )
        self.line.send(Outcome.of(task.node, 0.0, error))


if __name__ == "__main__":
    main()
