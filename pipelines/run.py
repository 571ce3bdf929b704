"""One walk over a plan: takes what is known, runs what is not, keeps what comes out, and goes on after failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines import gates, publish
from pipelines.checkout import Checkout
from pipelines.config import Config, RayConfig
from pipelines.display import Display
from pipelines.errors import StageError, TapeoutError, UnwritableError
from pipelines.execute import Executor, Needs, Outcome, Schedule, Task
from pipelines.explain import reason
from pipelines.figures import read_summary
from pipelines.history import Journal, history_of
from pipelines.ledger import Record
from pipelines.plan import Node, Plan
from pipelines.project import Project
from pipelines.summary import Summary
from pipelines.tasks import SCRATCHES, drop_scratch, make_task, read_lines, set_aside


@dataclass
class Run:
    """One walk over the plan. An error fails the node that it is about; only one of the disk ends the walk.

    digests: {node: digest of its artifact} of what has ended well. pending: what is to run
    and has not started. tries: how often a node has been started. waits: for a node with the same key that runs."""

    project: Project
    config: Config
    plan: Plan
    display: Display
    checkout: Checkout
    jobs: int | None = None
    keep_going: bool = True
    summary: Summary = field(default_factory=Summary)
    digests: dict[str, str] = field(default_factory=dict)
    pending: list[Node] = field(default_factory=list)
    tasks: dict[str, Running] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)
    waits: set[str] = field(default_factory=set)
    publisher: publish.Publisher | None = None

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.plan)
        self.history = history_of(self.project)
        self.journal: Journal | None = None
        self.stopped_by = ""
        self._executor: Executor | None = None

    @property
    def executor(self) -> Executor:
        """Made when the first node has to run."""
        if self._executor is None:
            if isinstance(self.config.executor, RayConfig):  # it takes seconds
                self.display.note(f"joining the Ray cluster at {self.config.executor.address or 'a new one here'}")
            self._executor = make_executor(self.project, self.config, self.jobs)
        return self._executor

    def all(self) -> None:
        """Bring every node to its end."""
        self.display.begin(len(self.plan.nodes))
        while self.schedule.active() and not (self.stopped_by and not self.tasks):
            while nodes := self.schedule.ready():
                for node in nodes:
                    self.enter(node)
            self.work_off(once=True)
        if self.stopped_by:
            left = [*self.pending, *self.schedule.waiting.values()]
            self.skip(left, f"stopped after {self.stopped_by} failed")

    def enter(self, node: Node) -> None:
        """Take a node's known result, or line it up to run."""
        try:
            found = self.checkout.find(node, self.ingredients(node))
            if found is not None:
                self.checkout.settle(node, found)
            folder = self.project.root / node.folder
            metrics = self.metrics(node, folder) if found is not None else None
            text = read_summary(folder, node) if found is not None else ""
        except UnwritableError:
            raise
        except TapeoutError as error:
            self.fail(node, Outcome.of(node.name, 0.0, error))
            return
        if found is None:
            self.publisher = self.publisher or publish.start(self.project, self.config)
            self.pending.append(node)
            return
        own = self.project.state / "scratch" / node.name
        if own.is_dir():  # a build was killed between keeping this result and dropping its scratch
            drop_scratch(own / found.key)
        self.digests[node.name] = found.tree.digest
        self.display.ended(self.summary.add(node, self.plan.devices, "cached", found, summary=text))
        self.conclude(node, metrics)

    def work_off(self, once: bool = False) -> None:
        """Start what there is room for and take in what comes of it: until all is done, or `once`."""
        while self.pending or self.tasks:
            executor = self.executor  # one that cannot be made is no node's fault
            for node in list(self.pending):
                try:
                    if self.stopped_by or not self.has_room(node) or self.is_made(node):
                        continue
                    running = self.prepare(node)
                except UnwritableError:
                    raise
                except TapeoutError as error:
                    self.pending.remove(node)
                    self.fail(node, Outcome.of(node.name, 0.0, error))
                    continue
                self.pending.remove(node)
                self.tasks[node.name] = running
                self.tries[node.name] += 1
                executor.submit(running.task)
                self.display.started(node, running.why)
            if not self.tasks:
                return
            for message in executor.wait():
                if isinstance(message, Outcome):
                    self.end(message)
                else:
                    self.display.progress(message)
            if once:
                return

    def is_made(self, node: Node) -> bool:
        """Say whether another node makes this one's result, or has just made it: two devices may turn out to need the
        same only when what they need is there. Its result is then taken as any that is known."""
        key = self.checkout.key_of(self.ingredients(node))
        if any(key == self.checkout.key_of(each.ingredients) for each in self.tasks.values()):
            self.waits.add(node.name)
            return True
        if node.name in self.waits:
            self.waits.discard(node.name)
            self.pending.remove(node)
            self.enter(node)
            return True
        return False

    def has_room(self, node: Node) -> bool:
        """Say whether a node can start now. One that was lost waits until nothing else takes the machine's memory."""
        if self.executor.one_machine and (self.tries[node.name] or any(self.tries[name] > 1 for name in self.tasks)):
            return not self.tasks
        return self.executor.room(self.needs(node))

    def needs(self, node: Node) -> Needs:
        """Return what the node takes while it runs, as its stage has declared."""
        declared = node.stage.resources
        size = self.checkout.input_size(node, self.plan) if declared.memory_per_input else 0
        return Needs(declared.cpus, declared.memory_mib + int(declared.memory_per_input * size / 2**20))

    def prepare(self, node: Node) -> Running:
        """Make ready what the executor is to be given."""
        ingredients = self.ingredients(node)
        why = reason(self.checkout, self.history, node, ingredients)
        if not why and self.checkout.find(node, ingredients) is None:
            why = "its result is not in the store"
        task = make_task(self.checkout, self.config, self.plan, node, ingredients, self.needs(node))
        if set_aside(task.scratch.parent):
            kept = f"{self.project.relative(task.scratch.parent.parent)} keeps the last {SCRATCHES} states"
            self.display.note(f"{node.name:<28} starts anew: a state was left unfinished under another key; {kept}")
        return Running(node, ingredients, task, why)

    def end(self, outcome: Outcome) -> None:
        """Keep the result of a node that has run, try it again, or give up what needs it."""
        running = self.tasks.pop(outcome.node)
        node, task = running.node, running.task
        self.summary.measurements[node.name] = read_lines(task.metrics)
        result: Record | None = None
        if outcome.passed:
            try:
                self.check(node, task, outcome)
                metrics, text = self.metrics(node, task.out), read_summary(task.out, node)
                result = self.checkout.accept(node, running.ingredients, task.out)
            except UnwritableError:
                raise
            except TapeoutError as error:
                outcome = Outcome.of(node.name, outcome.seconds, error)
        if result is not None:
            drop_scratch(task.scratch.parent)
            self.digests[node.name] = result.tree.digest
            self.display.ended(
                self.summary.add(
                    node,
                    self.plan.devices,
                    "built",
                    result,
                    outcome.seconds,
                    why=running.why,
                    memory_mib=outcome.memory_mib,
                    summary=text,
                )
            )
            if self.journal is not None:
                self.journal.note(self.summary)
            self.conclude(node, metrics)
            return
        self.checkout.store.discard(task.out)
        retries = self.config.executor.retries
        if outcome.lost and self.tries[node.name] <= retries and not self.stopped_by:
            self.display.note(f"{outcome.error}; it is tried again ({self.tries[node.name]} of {retries})")
            self.pending.append(node)
            return
        self.fail(node, outcome, self.checkout.key_of(running.ingredients), running.why)

    def fail(self, node: Node, outcome: Outcome, key: str | None = None, why: str = "") -> None:
        """Note that a node has failed, and give up what needs it."""
        message = "\n".join(filter(None, [outcome.error, outcome.hint, outcome.tail])).replace("\n", "\n  ")
        self.display.ended(
            self.summary.add(
                node, self.plan.devices, "failed", None, outcome.seconds, key, why, message, outcome.memory_mib
            )
        )
        self.give_up(node, f"{node.name} failed")

    def check(self, node: Node, task: Task, outcome: Outcome) -> None:
        """Raise StageError where a result does not belong to its key."""
        edited = self.checkout.keys.edited(node, outcome.executed) or ", ".join(
            self.plan.nodes[need].folder
            for need in node.inputs.values()
            if (shown := self.checkout.shown(self.plan.nodes[need])) is None or shown.digest != self.digests[need]
        )
        if edited:
            raise StageError(
                f"{node.name}: changed while it ran: {edited}",
                hint="its result is dropped; build again when all is saved",
            )

    def metrics(self, node: Node, folder: Path) -> dict[str, Any] | None:
        """Return what the gates file in `folder` holds, None where the node has none. Raises StageError."""
        return gates.read_metrics(folder, node) if node.stage.gates else None

    def conclude(self, node: Node, metrics: dict[str, Any] | None) -> None:
        """Let go what waits for a node that ended well, unless its gates, which are in `metrics`, forbid it."""
        failed = self.summary.judge(node, metrics) if metrics is not None else []
        for gate in failed:
            self.display.note(f"GATE FAILED {', '.join(node.devices)}: {gates.describe(gate)}")
        if failed:
            self.give_up(node, f"a gate of {node.name} failed")
        else:
            self.schedule.done(node.name)

    def give_up(self, node: Node, why: str) -> None:
        """Skip what needs a node that failed; without keep_going, start nothing more."""
        self.skip(self.schedule.done(node.name, passed=False), why)
        if not self.keep_going:
            self.stopped_by = self.stopped_by or node.name

    def skip(self, nodes: list[Node], why: str) -> None:
        for node in nodes:
            self.display.ended(self.summary.add(node, self.plan.devices, "skipped", why=why))

    def withdraw(self) -> None:
        """Take older results of what failed now out of the workspace, where they would pass for this build's."""
        for entry in self.summary.nodes:
            node = self.plan.nodes[entry.name]
            if entry.status in ("failed", "skipped") and self.checkout.withdraw(node):
                self.display.note(f"{node.folder} was an earlier build's and is removed; the store keeps it")

    def ingredients(self, node: Node) -> dict[str, Any]:
        inputs = {parameter: self.digests[need] for parameter, need in node.inputs.items()}
        return self.checkout.keys.ingredients(node, inputs)

    def close(self) -> None:
        """End the workers and the display."""
        if self._executor is not None:
            self._executor.close()
        self.display.close()


@dataclass(frozen=True)
class Running:
    """A node that has been given to the executor, and why it runs."""

    node: Node
    ingredients: dict[str, Any]
    task: Task
    why: str


def make_executor(project: Project, config: Config, jobs: int | None) -> Executor:
    """Return the executor that the configuration names."""
    if isinstance(config.executor, RayConfig):
        from pipelines.cluster import RayExecutor

        return RayExecutor(project, config)
    from pipelines.workers import LocalExecutor, free_cores, free_memory

    count = jobs or config.executor.jobs or free_cores()
    return LocalExecutor(project.root, count, config.executor.memory_mib or free_memory())
