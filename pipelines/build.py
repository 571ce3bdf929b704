"""`tapeout build`, `plan` and `stage`: walks the plan, runs what is not known yet, keeps what comes out."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines import gates, params, publish, record
from pipelines.checkout import Checkout, opened
from pipelines.config import Config, RayConfig
from pipelines.display import Display
from pipelines.errors import ConfigError, GateError, StageError
from pipelines.execute import Executor, Needs, Outcome, Schedule, Task
from pipelines.explain import reason
from pipelines.files import storing
from pipelines.history import Journal, history_of
from pipelines.plan import Node, Plan
from pipelines.project import Project
from pipelines.summary import Summary

SCRATCHES = 3  # unfinished states kept of a node, this one's included; each may be as large as a checkpoint


def build(
    project: Project,
    config: Config,
    plan: Plan,
    display: Display,
    jobs: int | None = None,
    keep_going: bool = True,
    name: str | None = None,
) -> tuple[Summary, publish.Publisher | None]:
    """Build all of `plan`. Raises ConfigError (nothing ran) and StoreError.

    A failure stops only what needs it or, without keep_going, all that has not started. name: what the build is called
    if it passes. Also returns the process that is to publish the summary (see publish.finish), or None where nothing
    ran.
    """
    started = time.monotonic()
    if jobs is not None and isinstance(config.executor, RayConfig):
        raise ConfigError("executor=ray has no use for --jobs", hint="the cluster's machines say what cores they have")
    with opened(project, lambda: display.note("another build has this project; waiting for it")) as checkout:
        for node in plan.nodes.values():
            checkout.keys.known(node)  # raises before anything runs
        checkout.clear()
        run = Run(project, config, plan, display, checkout, jobs, keep_going)
        run.journal = journal = Journal(run.history, plan.nodes, config.overrides)
        try:
            run.all()
        finally:
            run.close()
        run.withdraw()
        try:
            record.write(checkout, config, plan, run.summary)
        except ConfigError as error:  # an input from outside was there when the build began
            gone = StageError(f"during the build, this happened: {error.message}", hint="put it back and build again")
            if run.summary.passed:
                raise gone from error
            display.note(str(gone))  # a node has failed, probably for that
        run.summary.seconds = round(time.monotonic() - started, 3)
        publish.keep(project, run.summary)
        journal.finish(run.summary, name)
        if name is not None and not run.summary.passed:
            display.note(f"the build did not pass, and is not called {name}")
    return run.summary, run.publisher


def run_stage(project: Project, config: Config, plan: Plan, name: str, display: Display) -> Summary:
    """Run one node on the inputs in the workspace, whether or not its result is known. What dvc.yaml calls.

    Raises StageError where an input is missing, GateError where one has failed its gates.
    """
    node = plan.node(name)
    with opened(project, lambda: display.note("another build has this project; waiting for it")) as checkout:
        run = Run(project, config, plan, display, checkout, 1)
        for need in map(plan.node, node.inputs.values()):
            shown = checkout.shown(need)
            if shown is None:
                raise StageError(
                    f"{name} needs {need.name}, and {need.folder} is not there",
                    hint=f"make it first: 'tapeout stage {need.name}', or all with 'tapeout build'",
                )
            run.digests[need.name] = shown.digest
            if need.stage.gates:
                for gate in gates.failed_gates(gates.read_metrics(project.root / need.folder, need)):
                    raise GateError(f"{name} does not run: {need.name}: {gates.describe(gate)}")
        if params.in_repro():
            record.refresh_params(checkout, config)
        try:
            run.pending.append(node)
            run.work_off()
        finally:
            run.close()
        made = checkout.last(node)
        if made is not None:
            params.share(project, made)
    return run.summary


@dataclass
class Run:
    """One walk over the plan. digests: {node: digest of its artifact} of what has ended well. pending: what is to run
    and has not started. tries: how often a node has been started."""

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
        ingredients = self.ingredients(node)
        found = self.checkout.find(node, ingredients)
        if found is None:
            self.publisher = self.publisher or publish.start(self.project, self.config)
            self.pending.append(node)
            return
        self.checkout.settle(node, found)
        own = self.project.state / "scratch" / node.name
        if own.is_dir():  # a build was killed between keeping this result and dropping its scratch
            drop_scratch(own / found.key)
        self.digests[node.name] = found.tree.digest
        self.display.ended(self.summary.add(node, self.plan.devices, "cached", found))
        self.conclude(node)

    def work_off(self, once: bool = False) -> None:
        """Start what there is room for and take in what comes of it: until all is done, or `once`."""
        while self.pending or self.tasks:
            for node in list(self.pending):
                if not self.stopped_by and self.has_room(node):
                    self.pending.remove(node)
                    self.start(node)
            if not self.tasks:
                return
            for message in self.executor.wait():
                if isinstance(message, Outcome):
                    self.end(message)
                else:
                    self.display.progress(message)
            if once:
                return

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

    def start(self, node: Node) -> None:
        """Give a node to the executor."""
        ingredients = self.ingredients(node)
        why = reason(self.checkout, self.history, node, ingredients)
        task = make_task(self.checkout, self.config, self.plan, node, ingredients, self.needs(node))
        if set_aside(task.scratch.parent):
            kept = f"{self.project.relative(task.scratch.parent.parent)} keeps the last {SCRATCHES} states"
            self.display.note(f"{node.name:<28} starts anew: a state was left unfinished under another key; {kept}")
        self.tasks[node.name] = Running(node, ingredients, task, why)
        self.tries[node.name] += 1
        self.executor.submit(task)
        self.display.started(node, why)

    def end(self, outcome: Outcome) -> None:
        """Keep the result of a node that has run, try it again, or give up what needs it."""
        running = self.tasks.pop(outcome.node)
        node, task = running.node, running.task
        self.summary.measurements[node.name] = read_lines(task.metrics)
        if outcome.passed and node.stage.gates:
            try:
                gates.read_metrics(task.out, node)
            except StageError as error:
                outcome = Outcome.of(node.name, outcome.seconds, error)
        if outcome.passed:
            result = self.checkout.accept(node, running.ingredients, task.out)
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
                )
            )
            if self.journal is not None:
                self.journal.note(self.summary)
            self.conclude(node)
            return
        self.checkout.store.discard(task.out)
        retries = self.config.executor.retries
        if outcome.lost and self.tries[node.name] <= retries and not self.stopped_by:
            self.display.note(f"{outcome.error}; it is tried again ({self.tries[node.name]} of {retries})")
            self.pending.append(node)
            return
        message = "\n".join(filter(None, [outcome.error, outcome.hint, outcome.tail])).replace("\n", "\n  ")
        key = self.checkout.key_of(running.ingredients)
        self.display.ended(
            self.summary.add(
                node, self.plan.devices, "failed", None, outcome.seconds, key, running.why, message, outcome.memory_mib
            )
        )
        self.give_up(node, f"{node.name} failed")

    def conclude(self, node: Node) -> None:
        """Let go what waits for a node that ended well, unless its gates forbid it."""
        failed = (
            self.summary.judge(node, gates.read_metrics(self.project.root / node.folder, node))
            if node.stage.gates
            else []
        )
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


def make_task(
    checkout: Checkout, config: Config, plan: Plan, node: Node, ingredients: dict[str, Any], needs: Needs
) -> Task:
    """Return what a worker needs to run `node`, with its folders made."""
    project = checkout.project
    key = checkout.key_of(ingredients)
    settings = dict(node.config) if node.config is not None else None
    for name in node.stage.sources:
        settings = {**(settings or {}), name: str(project.root / str((settings or {})[name]))}
    out, scratch = checkout.store.new_folder(), project.state / "scratch" / node.name / key / "state"
    log = project.state / "logs" / f"{node.name}.log"
    with storing(project.state):
        scratch.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
    return Task(
        node=node.name,
        run=node.stage.run,
        import_roots=tuple(str(root) for root in project.import_roots),
        schemas=config.pipeline.schemas,
        config_group=node.stage.config,
        config=settings,
        device=node.device,
        libraries=ingredients["libraries"],
        inputs={parameter: project.root / plan.nodes[need].folder for parameter, need in node.inputs.items()},
        out=out,
        scratch=scratch,
        log=log,
        metrics=scratch.parent / "measurements.jsonl",
        needs=needs,
        local=bool(node.stage.sources),
    )


def set_aside(own: Path) -> bool:
    """Say whether a node that starts in `own` leaves another key's state behind; keep the newest SCRATCHES folders.

    own: .tapeout/scratch/NODE/KEY. A stage resumes only under the key that it was stopped under: going back to the code
    and configuration of then goes on from there.
    """
    newest = sorted(own.parent.iterdir(), key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
    others = [folder for folder in newest if folder != own]
    for folder in others[SCRATCHES - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
    return not any((own / "state").iterdir()) and any(
        any((folder / "state").iterdir()) for folder in others[: SCRATCHES - 1] if (folder / "state").is_dir()
    )


def drop_scratch(folder: Path) -> None:
    """Remove the state of a node that has its result, and the node's folder unless other keys have states in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def make_executor(project: Project, config: Config, jobs: int | None) -> Executor:
    """Return the executor that the configuration names."""
    if isinstance(config.executor, RayConfig):
        from pipelines.cluster import RayExecutor

        return RayExecutor(project, config)
    from pipelines.workers import LocalExecutor, free_cores, free_memory

    count = jobs or config.executor.jobs or free_cores()
    return LocalExecutor(project.root, count, config.executor.memory_mib or free_memory())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the measurements in a file of JSON lines; a line cut short by a kill is left out.

    Of those with the same name and step, which a stage that resumed has measured again, the last counts.
    """
    found: dict[tuple[str, Any], dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                value = json.loads(line)
                found[value["name"], value["step"]] = value
    return list(found.values())
