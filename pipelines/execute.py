"""The scheduler's protocol: what is ready, where it runs, what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipelines.errors import TapeoutError
from pipelines.plan import Node, Plan
from pipelines.workspace import Event


@dataclass(frozen=True)
class Needs:
    """What a task takes of a machine while it runs: processor cores, and memory in MiB."""

    cpus: int = 1
    memory_mib: int = 0


@dataclass(frozen=True)
class Item:
    """What makes a task one call of a map. id: of the map; caller: of the stage's process. text: the item, as JSON.
    folders: whether the call's `out` is kept."""

    id: str
    caller: str
    index: int
    text: str
    folders: bool


@dataclass(frozen=True)
class Task:
    """All that a process needs to run one node, or one call of what a node maps; it can be pickled.

    import_roots: folders to import from. schemas: name of the {group: dataclass} mapping, or None. config_group: the
    group of `config`. profiles: of all devices, for a stage that is given them. libraries: {name: version} of those
    that can change the result. inputs: {parameter: artifact folder}. out, scratch: see Workspace. log: the file for
    what the stage prints. metrics: the file that measurements are added to. local: it reads files from outside the
    store, so it runs on the machine that the build was started on. calls: what its stage may map. retries: how often a
    call is tried again that was lost. item: what a call is for, None for a node's own.
    """

    node: str
    run: str
    import_roots: tuple[str, ...]
    schemas: str | None
    config_group: str | None
    config: Mapping[str, Any] | None
    device: Mapping[str, Any] | None
    profiles: Mapping[str, Mapping[str, Any]] | None
    libraries: Mapping[str, str]
    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    log: Path
    metrics: Path
    needs: Needs
    local: bool
    calls: tuple[str, ...] = ()
    retries: int = 0
    item: Item | None = None

    @property
    def title(self) -> str:
        """What an error calls it."""
        return f"{self.node}: item {self.item.index} of {self.run}" if self.item else self.node


@dataclass(frozen=True)
class Outcome:
    """What came of a task. error, hint: the message, where it failed. tail: the last lines of its log, worth showing.

    lost: its process or machine went away, which says nothing of the task: it may be tried again. memory_mib: the most
    that its process held, 0 where that is not known. executed: {module: sha256 of its bytes} of the project's code.
    result: of one call of a map, as JSON. kind: the error's class, as package.module.NAME, where it is one of ours.
    """

    node: str
    seconds: float
    error: str = ""
    hint: str = ""
    tail: str = ""
    lost: bool = False
    memory_mib: int = 0
    executed: Mapping[str, str] = field(default_factory=dict)
    result: str = ""
    kind: str = ""

    @staticmethod
    def of(node: str, seconds: float, error: TapeoutError, tail: str = "", lost: bool = False) -> Outcome:
        """Return the outcome of a task that failed with `error`."""
        text = str(error.message) or type(error).__name__
        return Outcome(node, seconds, text, error.hint, tail, lost, kind=kind_of(error))

    @property
    def passed(self) -> bool:
        """Whether the task ended well: an error always has a text."""
        return not self.error


def kind_of(error: TapeoutError) -> str:
    """Return the name by which an error's class can be found in another process."""
    return f"{type(error).__module__}.{type(error).__qualname__}"


@dataclass(frozen=True)
class Stale:
    """A process has imported code that is not on the disk any more: a new one must run the task `node`."""

    node: str


@dataclass(frozen=True)
class Report:
    """A progress event of a running task."""

    node: str
    event: Event


class Executor(Protocol):
    """Runs tasks somewhere: in local processes, or on a cluster.

    one_machine: whether all tasks share one machine's memory, so that a lost one is tried again alone.
    """

    one_machine: bool

    def room(self, needs: Needs) -> bool:
        """Say whether a task with these needs could start now. True where nothing runs, however much it needs."""

    def submit(self, task: Task) -> None:
        """Start a task. Its `out` is empty; a second try of a lost task has another `out`."""

    def wait(self) -> list[Outcome | Report]:
        """Wait until something has happened, and return it; nothing, where only room has come of it.

        A lost process is an Outcome like another. What stages map, they and the executor settle between them.
        """

    def close(self) -> None:
        """End every process. What still runs is given up."""


@dataclass
class Schedule:
    """Which nodes can start, as others are done. A node that failed takes along all that need it."""

    plan: Plan
    waiting: dict[str, Node] = field(init=False)
    succeeded: set[str] = field(init=False, default_factory=set)
    failed: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.waiting = dict(self.plan.nodes)
        self._place = {name: place for place, name in enumerate(self.waiting)}
        self._unmet = {name: set(node.inputs.values()) for name, node in self.waiting.items()}
        self._ready = [name for name, unmet in self._unmet.items() if not unmet]

    def ready(self) -> list[Node]:
        """Return the nodes that can start and have not been returned before, in the plan's order."""
        names, self._ready = sorted(self._ready, key=self._place.__getitem__), []
        return [self.waiting.pop(name) for name in names if name in self.waiting]

    def done(self, name: str, passed: bool = True) -> list[Node]:
        """Say that a node has ended. Return the nodes that now never can start."""
        if passed:
            self.succeeded.add(name)
            for node in self.plan.needed_by(name):
                self._unmet[node.name].discard(name)
                if not self._unmet[node.name] and node.name in self.waiting:
                    self._ready.append(node.name)
            return []
        self.failed.add(name)
        lost: list[Node] = []
        for node in self.plan.needed_by(name):
            if self.waiting.pop(node.name, None):
                lost += [node, *self.done(node.name, passed=False)]
        return lost

    def active(self) -> bool:
        """Say whether any node is neither done nor lost."""
        return len(self.succeeded) + len(self.failed) < len(self.plan.nodes)
