"""What a running stage is given beside its inputs: where to write, and how to tell how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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


class Workspace:
    """Handed to a stage as `work`.

    out       an empty folder; what the stage leaves there is the artifact
    scratch   a folder that outlives a kill of the process, keyed like the node: a stage that can resume keeps its state
              there; made when it is first asked for, removed once the stage has succeeded. After a change of code or
              configuration the key is another and the folder is empty; the build says so, and keeps the newest three of
              a node
    send      where events go
    """

    def __init__(self, out: Path, scratch: Path, send: Callable[[Event], None] = discard) -> None:
        self.out = out
        self.send = send
        self._scratch = scratch

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
