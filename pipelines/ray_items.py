"""What a stage maps on a Ray cluster: the Ray worker that runs the stage gives each item to Ray as another errand.

So a map ends with its stage, whatever is lost: Ray ends what a lost worker has asked for. While the stage waits for
answers this worker waits for Ray, which lends its cores to others meanwhile.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

from pipelines.errors import StageError, StoreError, WorkerError
from pipelines.execute import Outcome, Report, Task
from pipelines.items import Items, Piece
from pipelines.ray_worker import Begun, Errand, Returned, run_errand
from pipelines.transport import Remote
from pipelines.worker import log_tail

PATIENCE = 15.0  # s without a start, while cores are free, after which an item asks for no memory
LOOK = 2.0  # s between two looks at how many cores there are


class Running:
    """An item that has been given to Ray. begun: it has found a place."""

    def __init__(self, piece: Piece, generator: Any) -> None:
        self.piece = piece
        self.generator = generator
        self.since = time.monotonic()
        self.begun = False


class RayItems:
    """Gives the pieces of `items` to Ray. errand: the stage's own, which says where its inputs are."""

    def __init__(self, errand: Errand, items: Items) -> None:
        self.errand = errand
        self.items = items
        self.call = ray.remote(max_retries=0, num_returns="streaming")(run_errand)
        self.running: list[Running] = []
        self.cores = 1.0
        self._looked = self._moved = time.monotonic() - LOOK

    def step(self, seconds: float) -> list[Report]:
        """Start what there may be room for, wait so long for something to happen, and take it in."""
        self._drop()
        self._look()
        while len(self.running) < 2 * self.cores + 2 and (pieces := self.items.next()):
            self.items.begin(pieces[0])
            self._launch(pieces[0], pieces[0].task.needs.memory_mib)
        if not self.running:
            time.sleep(min(seconds, 0.01))
            return []
        generators = [each.generator for each in self.running]
        ready, _ = ray.wait(generators, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = ray.wait(generators, num_returns=len(generators), timeout=0.0)
        found = []
        for each in [each for each in self.running if any(each.generator is one for one in ready)]:
            self._moved = time.monotonic()
            found += self._hear(each)
        return found

    def close(self) -> None:
        """End all that runs."""
        for each in self.running:
            cancel(each)
        self.running.clear()

    def _launch(self, piece: Piece, memory_mib: int) -> None:
        task = piece.task
        options = {"num_cpus": task.needs.cpus, "memory": (memory_mib << 20) or None, "name": task.title}
        errand = replace(self.errand, task=task)
        self.running.append(Running(piece, self.call.options(**options).remote(errand)))

    def _hear(self, own: Running) -> list[Report]:
        """Take in what an item has said."""
        task = own.piece.task
        message: Begun | Report | Returned | Outcome
        try:
            message = ray.get(next(own.generator))
        except StopIteration:
            message = Outcome(task.node, 0.0, f"{task.title} ended without a result on the cluster")
        except RayError as error:
            message = failure(task, time.monotonic() - own.since, error)
        if isinstance(message, Report):
            return [message]
        if isinstance(message, Begun):
            own.begun = True
            return []
        outcome = message if isinstance(message, Outcome) else bring(task, self.errand.remote, message)
        self.running.remove(own)
        self.items.end(own.piece, outcome)
        return []

    def _drop(self) -> None:
        """End what no map waits for any more."""
        for each in [each for each in self.running if each.piece.id not in self.items.maps]:
            cancel(each)
            self.running.remove(each)

    def _look(self) -> None:
        """See how many cores there are. Let one item go without its memory where that alone keeps all from starting:
        stages that wait for their items hold theirs."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        self.cores = max(1.0, ray.cluster_resources().get("CPU", 1.0))
        if self.running and not any(each.begun for each in self.running) and now - self._moved > PATIENCE:
            first = self.running[0]
            if ray.available_resources().get("CPU", 0.0) >= first.piece.task.needs.cpus:
                cancel(first)
                self.running.remove(first)
                self._launch(first.piece, 0)
                self._moved = now


def bring(task: Task, remote: Any, returned: Returned) -> Outcome:
    """Bring an item's log, measurements and, where they are asked for, files to the stage's own; return its outcome."""
    for path, data in ((task.log, returned.log), (task.metrics, returned.metrics)):
        if data:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                file.write(data)
    if task.item is None or not task.item.folders or not returned.outcome.passed:
        return returned.outcome
    if task.out.exists():
        shutil.rmtree(task.out)
    task.out.mkdir(parents=True)
    try:
        if returned.tree is not None:
            Remote(remote).fetch(returned.tree, task.out)
    except StoreError as error:
        return Outcome.of(task.node, returned.outcome.seconds, error)
    return returned.outcome


def cancel(own: Running) -> None:
    """End an item, with the process that it runs in."""
    with contextlib.suppress(RayError, ValueError, TypeError):
        ray.cancel(own.generator, force=True)


def failure(task: Task, seconds: float, error: RayError) -> Outcome:
    """Return the outcome of a call that Ray could not bring to its end. Most such are the loss of a machine."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, RayTaskError):  # our own code on the worker's side, or its import
        last = str(error).strip().splitlines()[-1]
        return Outcome.of(task.node, seconds, StageError(f"{task.title} could not be run on the cluster: {last}"))
    if isinstance(error, RuntimeEnvSetupError):
        text = " ".join(str(error).split())[:300]
        return Outcome.of(task.node, seconds, StageError(f"{task.title}: the code could not be sent: {text}"))
    lost = WorkerError(
        f"{task.title}: its Ray worker was lost: {text[:200]}",
        hint="if memory ran out: say what the stage takes, resources: {memory_mib: N}",
    )
    return Outcome.of(task.node, seconds, lost, log_tail(task.log), lost=True)
