"""`tapeout build`, `plan` and `stage`: walks the plan, runs what is not known yet, keeps what comes out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines import gates, publish, record
from pipelines.checkout import Checkout, opened
from pipelines.config import Config
from pipelines.display import Display
from pipelines.errors import GateError, StageError
from pipelines.execute import Executor, Outcome, Schedule, Task
from pipelines.explain import reason
from pipelines.plan import Node, Plan
from pipelines.project import Project
from pipelines.store import storing
from pipelines.summary import Summary

SCRATCHES = 3  # unfinished states kept of a node, this one's included; each may be as large as a checkpoint


def build(
    project: Project, config: Config, plan: Plan, display: Display, jobs: int | None = None
) -> tuple[Summary, publish.Publisher | None]:
    """Build all of `plan`. A failure stops only what needs it. Raises ConfigError (nothing ran) and StoreError.

    Also returns the process that is to publish the summary (see publish.finish), or None where nothing ran.
    """
    started = time.monotonic()
    with opened(project, lambda: display.note("another build has this project; waiting for it")) as checkout:
        for node in plan.nodes.values():
            checkout.keys.known(node)  # raises before anything runs
        checkout.clear()
        run = Run(project, config, plan, display, checkout, jobs)
        try:
            run.all()
        finally:
            run.close()
        run.withdraw()
        record.write(checkout, config, plan, run.summary)
        run.summary.seconds = round(time.monotonic() - started, 3)
        publish.keep(project, run.summary)
    return run.summary, run.publisher


def preview(project: Project, plan: Plan) -> Iterator[tuple[Node, str, str]]:
    """Yield (node, "cached" or "run", why) for each node, as things are now. Nothing is run."""
    checkout = Checkout(project, looking=True)
    known: dict[str, str] = {}
    for node in plan.nodes.values():
        checkout.keys.known(node)
    for node in plan.nodes.values():
        unknown = [need for need in node.inputs.values() if need not in known]
        if unknown:
            yield node, "run", f"needs {', '.join(dict.fromkeys(unknown))}"
            continue
        ingredients = checkout.keys.ingredients(node, {name: known[need] for name, need in node.inputs.items()})
        found = checkout.find(node, ingredients)
        if found is not None:
            known[node.name] = found.tree.digest
            yield node, "cached", ""
        else:
            yield node, "run", reason(checkout.last(node), ingredients) or "its result is not in the store"
    with contextlib.suppress(OSError):  # a project that cannot be written can still be planned
        checkout.digests.save()


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
        try:
            run.start(node)
            while run.tasks:
                run.hear()
        finally:
            run.close()
    return run.summary


@dataclass
class Run:
    """One walk over the plan. digests: {node: digest of its artifact} of what has ended well."""

    project: Project
    config: Config
    plan: Plan
    display: Display
    checkout: Checkout
    jobs: int | None
    summary: Summary = field(default_factory=Summary)
    digests: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, tuple[Node, dict[str, Any], Task, str]] = field(default_factory=dict)
    publisher: publish.Publisher | None = None

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.plan)
        self._executor: Executor | None = None

    @property
    def executor(self) -> Executor:
        """Made when the first node has to run."""
        if self._executor is None:
            self._executor = make_executor(self.project, self.config, self.jobs)
        return self._executor

    def all(self) -> None:
        """Bring every node to its end."""
        queue: deque[Node] = deque()
        self.display.begin(len(self.plan.nodes))
        while self.schedule.active():
            queue.extend(self.schedule.ready())
            if queue and (not self.tasks or self.executor.free()):
                self.enter(queue.popleft())
            elif self.tasks:
                self.hear()

    def enter(self, node: Node) -> None:
        """Take a node's known result, or start it."""
        ingredients = self.ingredients(node)
        found = self.checkout.find(node, ingredients)
        if found is None:
            self.publisher = self.publisher or publish.start(self.project, self.config)
            self.start(node)
            return
        self.checkout.settle(node, found)
        own = self.project.state / "scratch" / node.name
        if own.is_dir():  # a build was killed between keeping this result and dropping its scratch
            drop_scratch(own / self.checkout.key_of(ingredients))
        self.digests[node.name] = found.tree.digest
        self.display.ended(self.summary.add(node, self.plan.devices, "cached", found))
        self.conclude(node)

    def start(self, node: Node) -> None:
        """Give a node to the executor."""
        ingredients = self.ingredients(node)
        why = reason(self.checkout.last(node), ingredients)
        task = make_task(self.checkout, self.config, self.plan, node, ingredients)
        if set_aside(task.scratch.parent):
            kept = f"{self.project.relative(task.scratch.parent.parent)} keeps the last {SCRATCHES} states"
            self.display.note(f"{node.name:<28} starts anew: a state was left unfinished under another key; {kept}")
        self.tasks[node.name] = (node, ingredients, task, why)
        self.executor.submit(task)
        self.display.started(node, why)

    def hear(self) -> None:
        """Wait for the executor, and take in what it says."""
        for message in self.executor.wait():
            if isinstance(message, Outcome):
                self.end(message)
            else:
                self.display.progress(message)

    def end(self, outcome: Outcome) -> None:
        """Keep the result of a node that has run, or give up what needs it."""
        node, ingredients, task, why = self.tasks.pop(outcome.node)
        self.summary.measurements[node.name] = read_lines(task.metrics)
        if outcome.passed and node.stage.gates:
            try:
                gates.read_metrics(task.out, node)
            except StageError as error:
                outcome = Outcome.of(node.name, outcome.seconds, error)
        if not outcome.passed:
            message = "\n  ".join(filter(None, [outcome.error, outcome.hint]))
            key = self.checkout.key_of(ingredients)
            self.checkout.store.discard(task.out)
            self.display.ended(
                self.summary.add(node, self.plan.devices, "failed", None, outcome.seconds, key, why, message)
            )
            self.skip(self.schedule.done(node.name, passed=False), f"{node.name} failed")
            return
        result = self.checkout.accept(node, ingredients, task.out)
        drop_scratch(task.scratch.parent)
        self.digests[node.name] = result.tree.digest
        self.display.ended(self.summary.add(node, self.plan.devices, "built", result, outcome.seconds, why=why))
        self.conclude(node)

    def conclude(self, node: Node) -> None:
        """Let go what waits for a node that ended well, unless its gates forbid it."""
        failed = (
            self.summary.judge(node, gates.read_metrics(self.project.root / node.folder, node))
            if node.stage.gates
            else []
        )
        for gate in failed:
            self.display.note(f"GATE FAILED {', '.join(node.devices)}: {gates.describe(gate)}")
        lost = self.schedule.done(node.name, passed=not failed)
        self.skip(lost, f"a gate of {node.name} failed")

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


def make_task(checkout: Checkout, config: Config, plan: Plan, node: Node, ingredients: dict[str, Any]) -> Task:
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
        inputs={parameter: project.root / plan.nodes[need].folder for parameter, need in node.inputs.items()},
        out=out,
        scratch=scratch,
        log=log,
        metrics=scratch.parent / "measurements.jsonl",
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
    """Return the executor that the configuration names: one of config.EXECUTORS, of which there is one so far."""
    from pipelines.workers import LocalExecutor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = jobs or config.executor.jobs or cores or 1
    return LocalExecutor(project.root, count)


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
