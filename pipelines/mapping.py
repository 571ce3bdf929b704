"""`work.map`: a stage has a function called once for each of many items, by the executor that runs the stage itself.

The stage's process says what it wants on the line to whoever started it, and is sent answers only while it waits for
them, so that neither side ever writes to one that does not read. Nobody is told of an item's state: an item that was
lost begins anew, with its scratch folder as it left it.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.digests import hash_json
from pipelines.errors import StageError, TapeoutError, WorkerError, suggestion
from pipelines.execute import Needs, Outcome, Task

if TYPE_CHECKING:
    from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Call:
    """A stage begins a map. id: no other map's. items: (folder's name, the item as JSON) each. needs: of one item."""

    node: str
    id: str
    caller: str
    function: str
    items: tuple[tuple[str, str], ...]
    folders: bool
    needs: Needs


@dataclass(frozen=True)
class Want:
    """A stage waits for answers of its map `id`."""

    node: str
    id: str


@dataclass(frozen=True)
class Cancel:
    """A stage has no use any more for its map `id`."""

    node: str
    id: str


@dataclass(frozen=True)
class Answer:
    """What came of one item. result: as JSON. error, hint, kind: see Outcome."""

    index: int
    result: str
    error: str
    hint: str
    kind: str

    @staticmethod
    def of(index: int, outcome: Outcome) -> Answer:
        return Answer(index, outcome.result, outcome.error, outcome.hint, outcome.kind)

    def value(self) -> Any:
        """Return the item's result, or raise its error: of the class that it was, where that can be had."""
        if not self.error:
            return json.loads(self.result)
        module, _, name = self.kind.rpartition(".")
        kind: Any = StageError
        with contextlib.suppress(ImportError, AttributeError, ValueError):
            kind = getattr(importlib.import_module(module), name)
        try:
            error = kind(self.error, hint=self.hint)
        except TypeError:  # a class of the project's own, made of other things
            error = StageError(self.error, hint=self.hint)
        raise error if isinstance(error, TapeoutError) else StageError(self.error, hint=self.hint)


class Caller:
    """Maps of a stage that an executor runs. send: brings a message to the executor; receive: waits for one of its."""

    def __init__(self, task: Task, send: Callable[[Any], None], receive: Callable[[], Any]) -> None:
        self.task = task
        self.send = send
        self.receive = receive
        self.id = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._asking = threading.Lock()  # one question at a time, so that its answer is the next message

    def map(
        self, function: str, items: Sequence[Any], folders: bool, cpus: int, memory_mib: int | None
    ) -> Iterator[tuple[int, Any]]:
        """See Workspace.map."""
        task = self.task
        if task.item is not None:
            raise StageError(f"{task.run} maps {function}, and is itself mapped", hint="map from the stage's function")
        if function not in task.calls:
            known = suggestion(function, task.calls, "it may call")
            raise StageError(
                f"{task.run} maps {function}, which stage {task.node} does not declare",
                hint=f"{known}; declare it: calls: [..., {function}]",
            )
        memory = task.needs.memory_mib if memory_mib is None else memory_mib
        named = tuple(named_items(function, items))
        call = Call(
            task.node, f"{self.id}.{next(self._numbers)}", self.id, function, named, folders, Needs(cpus, memory)
        )
        self.send(call)
        return self._answers(call)

    def _answers(self, call: Call) -> Iterator[tuple[int, Any]]:
        left = len(call.items)
        try:
            while left:
                for answer in self._ask(call):
                    left -= 1
                    value = answer.value()
                    folder = self.task.scratch / "map" / call.items[answer.index][0] / "out"
                    yield answer.index, (value, folder) if call.folders else value
        finally:
            if left:
                with contextlib.suppress(OSError):
                    self.send(Cancel(call.node, call.id))

    def _ask(self, call: Call) -> tuple[Answer, ...]:
        with self._asking:
            self.send(Want(call.node, call.id))
            try:
                answers: tuple[Answer, ...] = self.receive()
            except (EOFError, OSError) as error:
                raise WorkerError(f"{self.task.run}: the build that ran it is gone") from error
        return answers


class InProcess:
    """Maps of a stage that no executor runs, as in a test: each item in its turn, in this very process.

    given: what the stage itself was given, by the names of parameters. Functions are not asked to be declared.
    """

    def __init__(self, work: Workspace, given: Mapping[str, Any]) -> None:
        self.work = work
        self.given = given

    def map(
        self, function: str, items: Sequence[Any], folders: bool, cpus: int, memory_mib: int | None
    ) -> Iterator[tuple[int, Any]]:
        """See Workspace.map."""
        return self._results(function, list(named_items(function, items)), folders)

    def _results(self, function: str, named: list[tuple[str, str]], folders: bool) -> Iterator[tuple[int, Any]]:
        from pipelines.given import call
        from pipelines.workspace import Workspace

        for index, (name, text) in enumerate(named):
            folder = self.work.scratch / "map" / name
            work = Workspace(folder / "out", folder / "state", self.work.send, maps=Nested(function))
            available = {
                **{parameter: partial(itself, value) for parameter, value in self.given.items()},
                "item": partial(itself, json.loads(text)),
                "work": partial(lambda work, hint: with_empty_out(work), work),
            }
            try:
                value = json.loads(as_json(function, call(function, available, missing_here)))
            except TapeoutError:
                raise
            except Exception as error:
                raise StageError(f"{function} failed: {type(error).__name__}: {error}") from error
            if not folders:
                shutil.rmtree(folder, ignore_errors=True)
            yield index, (value, folder / "out") if folders else value


class Nested:
    """Refuses the maps of a function that is itself mapped."""

    def __init__(self, function: str) -> None:
        self.function = function

    def map(
        self, function: str, items: Sequence[Any], folders: bool, cpus: int, memory_mib: int | None
    ) -> Iterator[tuple[int, Any]]:
        raise StageError(f"{self.function} maps {function}, and is itself mapped", hint="map from the stage's function")


def itself(value: Any, hint: Any) -> Any:
    """Return a value that needs no type."""
    return value


def missing_here(parameter: str) -> str:
    """Return the hint for a parameter that a workspace without an executor cannot give."""
    return f"where no executor runs the stage: Workspace(out, scratch, given={{'{parameter}': ...}})"


def named_items(function: str, items: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield (the name of its folder, the item as JSON). Raises StageError for what JSON cannot hold."""
    seen: dict[str, int] = {}
    for index, item in enumerate(items):
        try:
            name, text = hash_json([function, item]), json.dumps(item)
        except (TypeError, ValueError) as error:
            raise StageError(f"map: item {index} of {function} cannot be JSON: {error}") from error
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}-{seen[name]}", text  # equal items share no folder


def as_json(function: str, result: Any) -> str:
    """Return an item's result as JSON. Raises StageError."""
    try:
        return json.dumps(result)
    except (TypeError, ValueError) as error:
        raise StageError(
            f"{function} returned a {type(result).__name__} that cannot be JSON: {error}",
            hint="return numbers, texts, lists and mappings; files go to work.out, with map(..., folders=True)",
        ) from error


def with_empty_out(work: Workspace) -> Workspace:
    """Return an item's workspace with its `out` made, empty whatever an earlier try has left."""
    if work.out.exists():
        shutil.rmtree(work.out)
    work.out.mkdir(parents=True)
    return work


def folder_of(task: Task) -> Path:
    """Return the folder of an item, which holds its `out` and its `scratch`."""
    return task.out.parent
