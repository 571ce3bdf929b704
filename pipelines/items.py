"""The maps that running stages wait for: which items are still to be called, and what has come of the others.

It starts nothing: an executor asks what could start and says how it ended. The calls of several maps take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.execute import Item, Outcome, Task
from pipelines.files import storing
from pipelines.mapping import Answer, Call, Cancel, Want

SEVERAL = "several"  # in place of a digest, where processes have executed different bytes of one module


@dataclass
class Piece:
    """One item of a map. tries: how often it has been started."""

    id: str
    index: int
    task: Task
    tries: int = 0


@dataclass
class Map:
    """A map under way. left: answers that the stage has not been sent. wanted: the stage waits for some."""

    call: Call
    queue: deque[Piece]
    left: int
    running: int = 0
    ready: list[Answer] = field(default_factory=list)
    wanted: bool = False


class Items:
    """The maps of all stages that an executor runs."""

    def __init__(self) -> None:
        self.maps: dict[str, Map] = {}
        self._executed: dict[str, dict[str, str]] = {}  # by node
        self._memory: dict[str, int] = {}

    def take(self, task: Task, message: Call | Want | Cancel) -> None:
        """Take in what the stage that runs as `task` has said."""
        if isinstance(message, Call):
            pieces = (Piece(message.id, index, piece_of(task, message, index)) for index in range(len(message.items)))
            self.maps[message.id] = Map(message, deque(pieces), len(message.items))
        elif isinstance(message, Cancel):
            self.maps.pop(message.id, None)
        elif message.id in self.maps:
            self.maps[message.id].wanted = True

    def waits(self, node: str) -> bool:
        """Say whether the node's stage waits for answers."""
        return any(each.wanted for each in self.maps.values() if each.call.node == node)

    def next(self) -> list[Piece]:
        """Return the pieces that could be started next, of each map one: first of those with the fewest running."""
        found = sorted((each for each in self.maps.values() if each.queue), key=lambda each: each.running)
        return [each.queue[0] for each in found]

    def begin(self, piece: Piece) -> None:
        """Say that a piece, one of `next`, is started."""
        own = self.maps[piece.id]
        own.queue.remove(piece)
        own.running += 1
        piece.tries += 1

    def end(self, piece: Piece, outcome: Outcome) -> None:
        """Say what has come of a piece: it is an answer, or is to be tried again."""
        node = piece.task.node
        executed = self._executed.setdefault(node, {})
        for module, sha256 in outcome.executed.items():
            executed[module] = sha256 if executed.get(module, sha256) == sha256 else SEVERAL
        self._memory[node] = max(self._memory.get(node, 0), outcome.memory_mib)
        own = self.maps.get(piece.id)
        if own is None:  # its stage has no use for it any more
            return
        own.running -= 1
        if outcome.lost and piece.tries <= piece.task.retries:
            note(piece, outcome)
            own.queue.appendleft(piece)
        else:
            own.ready.append(Answer.of(piece.index, outcome))

    def answers(self) -> Iterator[tuple[str, tuple[Answer, ...]]]:
        """Yield (node, answers) for each stage that waits and has some."""
        for id, own in list(self.maps.items()):
            if own.wanted and own.ready:
                answers, own.ready, own.wanted = tuple(own.ready), [], False
                own.left -= len(answers)
                if not own.left:
                    del self.maps[id]
                yield own.call.node, answers

    def conclude(self, outcome: Outcome) -> Outcome:
        """Forget the maps of a node that has ended; return its outcome with what its items have executed and taken."""
        for id in [id for id, own in self.maps.items() if own.call.node == outcome.node]:
            del self.maps[id]
        executed = dict(outcome.executed)
        for module, sha256 in self._executed.pop(outcome.node, {}).items():
            executed[module] = sha256 if executed.get(module, sha256) == sha256 else SEVERAL
        memory = max(outcome.memory_mib, self._memory.pop(outcome.node, 0))
        return replace(outcome, executed=executed, memory_mib=memory)


def piece_of(task: Task, call: Call, index: int) -> Task:
    """Return the task of one item: its stage's, but for what it runs and where."""
    name, text = call.items[index]
    folder = folder_in(task.scratch, name)
    item = Item(call.id, call.caller, index, text, call.folders)
    return replace(task, run=call.function, out=folder / "out", scratch=folder / "state", needs=call.needs, item=item)


def folder_in(scratch: Path, name: str) -> Path:
    """Return where the item called `name` has its folders."""
    return scratch / "map" / name


def note(piece: Piece, outcome: Outcome) -> None:
    """Say in the stage's log that a piece is tried again."""
    again = f"{outcome.error}; it is tried again ({piece.tries} of {piece.task.retries})\n"
    with storing(piece.task.log), open(piece.task.log, "a", encoding="utf-8") as log:
        log.write(again)
