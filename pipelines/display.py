"""What a build shows while it runs: bars on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from pipelines.execute import Report
from pipelines.numbers import significant
from pipelines.plan import Node
from pipelines.summary import NodeSummary
from pipelines.workspace import Progress

MANY = 10_000  # units of which nobody wants to know how many are done
QUIET = 15.0  # s between two plain progress lines of a node


class Display(Protocol):
    """Told of everything that happens in a build."""

    def begin(self, nodes: int) -> None:
        """The build begins, with so many nodes."""

    def started(self, node: Node, why: str) -> None:
        """A node has been given to a worker."""

    def progress(self, report: Report) -> None:
        """A running node says how far it is."""

    def ended(self, entry: NodeSummary) -> None:
        """A node has ended, one way or another."""

    def note(self, text: str) -> None:
        """Something that the user should read."""

    def close(self) -> None:
        """The build is over."""


def make_display() -> Display:
    """Return the display that suits standard error."""
    return BarDisplay() if sys.stderr.isatty() else LineDisplay()


class LineDisplay:
    """One line for each thing that happens."""

    def __init__(self) -> None:
        self._spoken: dict[str, float] = {}

    def begin(self, nodes: int) -> None:
        pass

    def started(self, node: Node, why: str) -> None:
        self._spoken[node.name] = time.monotonic()
        self.note(f"{node.name:<28} runs     {why}".rstrip())

    def progress(self, report: Report) -> None:
        now, event = time.monotonic(), report.event
        if isinstance(event, Progress) and now - self._spoken.get(report.node, 0.0) > QUIET:
            self._spoken[report.node] = now
            self.note(f"{report.node:<28} {share(event)}")

    def ended(self, entry: NodeSummary) -> None:
        self.note(ending(entry))

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class BarDisplay:
    """A bar for each running node, and one for the build. A build in which nothing runs has no bars."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._nodes = self._ended = 0

    def begin(self, nodes: int) -> None:
        self._nodes = nodes

    def started(self, node: Node, why: str) -> None:
        if self._bars is None:
            self._bars = make_bars()
            self._bars.start()
            self._tasks[""] = self._bars.add_task("build", total=self._nodes, completed=self._ended, text="")
        self._tasks[node.name] = self._bars.add_task(node.name, total=None, text=why)

    def progress(self, report: Report) -> None:
        event, task = report.event, self._tasks.get(report.node)
        if isinstance(event, Progress) and task is not None:
            self._bars.update(task, completed=event.done, total=event.total or None, text=event.text)

    def ended(self, entry: NodeSummary) -> None:
        self._ended += 1
        task = self._tasks.pop(entry.name, None)
        if task is not None:
            self._bars.remove_task(task)
        if self._bars is not None:
            self._bars.update(self._tasks[""], completed=self._ended)
        self.note(ending(entry))

    def note(self, text: str) -> None:
        if self._bars is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()


def make_bars() -> Any:
    """Return rich's progress display, imported only when there is something to show."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
    return Bars(*columns, console=Console(stderr=True), transient=True)


def ending(entry: NodeSummary) -> str:
    """Return how a node ended, on one line, or more where it failed."""
    detail = {
        "built": f"{entry.seconds:.1f} s",
        "failed": f"{entry.seconds:.1f} s\n  {entry.error}",
        "skipped": entry.why,
    }.get(entry.status, "")
    return f"{entry.name:<28} {entry.status:<8} {detail}".rstrip()


def share(event: Progress) -> str:
    """Return how far a node is, in words: of many units, such as operations, a share."""
    if event.total > MANY:
        done = f"{100 * event.done / event.total:.0f} %"
    else:
        done = significant(event.done, 6) + (f" of {significant(event.total, 6)}" if event.total else "")
    return f"{done} {event.text}".rstrip()
