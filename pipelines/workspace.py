"""What a running stage is given beside its inputs: where to write, how to tell how far it is, and more hands."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units are done (total 0: not known)."""

    done: float
    total: float
    text: str = ""


@dataclass(frozen=True)
class Log:
    """One line for the node's log file."""

    text: str


@dataclass(frozen=True)
class Metric:
    """A number measured on the way. It varies from run to run, so it is recorded beside the artifact, not in it."""

    name: str
    value: float
    step: int | None = None


Event = Progress | Log | Metric


def discard(event: Event) -> None:
    """Drop `event`: the sink of a workspace that nobody watches, as in a test."""


class Maps(Protocol):
    """Calls functions for a stage: see Workspace.map."""

    def map(
        self, function: str, items: Sequence[Any], folders: bool, cpus: int, memory_mib: int | None
    ) -> Iterator[tuple[int, Any]]: ...


class Workspace:
    """Handed to a stage as `work`.

    out       an empty folder; what the stage leaves there is the artifact
    scratch   a folder that outlives a kill of the process, keyed like the node: a stage that can resume keeps its state
              there; made when it is first asked for, removed once the stage has succeeded. After a change of code or
              configuration the key is another and the folder is empty; the build says so, and keeps the newest three of
              a node
    send      where events go
    maps      who calls what the stage maps; None: this very process, which gives functions what is in `given`
    """

    def __init__(
        self,
        out: Path,
        scratch: Path,
        send: Callable[[Event], None] = discard,
        maps: Maps | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.out = out
        self.send = send
        self._scratch = scratch
        self._maps = maps
        self._given = given or {}

    @property
    def scratch(self) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Say that `done` of `total` units are done."""
        self.send(Progress(done, total, text))

    def log(self, text: str) -> None:
        """Add a line to the node's log."""
        self.send(Log(text))

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """Record a measurement (a loss, a time) for MLflow and the build's summary; it is no part of the artifact."""
        self.send(Metric(name, float(value), step))

    def map(
        self,
        function: str,
        items: Sequence[Any],
        *,
        folders: bool = False,
        cpus: int = 1,
        memory_mib: int | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Call package.module.function once for each item; yield (index of the item, result) as they come.

        The calls run where stages run, as many at a time as there is room for: in processes beside this one, or on the
        machines of a cluster. Each process stays for the next item, with all that the function's module keeps in
        memory; none outlives the stage. While the stage waits for a result, its own cores count as free.

        function  one of the stage's `calls`. It is given what its parameters ask for: `item`, and what the stage itself
                  can ask for. Its `work` has a `scratch` of its own, known by function and item, that outlives a kill,
                  and an empty `out`; its events are the stage's
        items     values that JSON can hold, as are results; both arrive as JSON has them: a tuple as a list
        folders   whether `out` is kept, until the stage ends; yields (index, (result, path of the item's `out`)) then
        cpus, memory_mib  what a call takes; by default one core, and the memory that the stage itself declares

        Raises the TapeoutError of the first call that raises one; StageError for any other; WorkerError for one whose
        process is lost, again after `executor.retries` new tries. What still runs then is ended, as it is where the
        iterator is closed early.
        """
        maps = self._maps
        if maps is None:
            mapping = importlib.import_module(f"{__package__}.mapping")  # computed: else each key held the engine
            maps = mapping.InProcess(self, self._given)
        return maps.map(function, items, folders, cpus, memory_mib)
