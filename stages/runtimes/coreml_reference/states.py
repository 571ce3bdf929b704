"""Spares the copies of states that nobody could tell from none.

The semantics: read_state copies a state into a value, write_state copies a value into it. A key-value cache is updated
by read, slice_update, write in every layer, which would copy the whole cache six times a layer.
"""

import math
from collections.abc import Sequence

from stages.runtimes.coreml_reference.operation import Operation

FOREVER = math.inf


def plan_states(operations: list[Operation], outputs: Sequence[str]) -> None:
    """Decide `in_place` and `skip` (of a slice_update and its write), then `copies` (of reads), for all operations."""
    last = last_uses(operations, outputs)
    for index in range(len(operations)):
        write = _write_back(index, operations, last)
        if write is not None:
            operations[index].in_place, operations[index].state = True, write.state
            write.skip = True
    for index, read in enumerate(operations):
        if read.kind == "read_state":
            read.copies = _is_disturbed(index, operations, last.get(read.sinks[0], -1))


def last_uses(operations: list[Operation], outputs: Sequence[str]) -> dict[str, float]:
    """For each value, the index of the last operation that reads it or a view of it; outputs are used for ever."""
    last: dict[str, float] = dict.fromkeys(outputs, FOREVER)
    for index in reversed(range(len(operations))):
        operation = operations[index]
        through_view = (
            max((last.get(sink, -1) for sink in operation.sinks), default=-1) if operation.kernel.view else -1
        )
        for position, source in enumerate(operation.sources):
            reach = max(index, through_view) if position == 0 else index
            last[source] = max(last.get(source, -1), reach)
    return last


def _write_back(index: int, operations: list[Operation], last: dict[str, float]) -> Operation | None:
    """The write_state that makes operation `index` an update in place, if there is one.

    It must be the only reader of the update, which must be of the state as it is now (read, and not written since), no
    older reading may still be wanted, and nothing may touch the state between the two.
    """
    update = operations[index]
    if update.kernel.in_place is None:
        return None
    readers = [operation for operation in operations if update.sinks[0] in operation.sources]
    if len(readers) != 1 or readers[0].kind != "write_state" or last.get(update.sinks[0]) == FOREVER:
        return None
    write = readers[0]
    before = [operation for operation in operations[:index] if operation.state == write.state]
    after = [operation for operation in operations[index:] if operation.state == write.state]
    readings = [operation.sinks[0] for operation in before if operation.kind == "read_state"]
    current = bool(before) and before[-1].kind == "read_state" and before[-1].sinks[0] == update.sources[0]
    unwanted = all(last.get(reading, -1) <= index for reading in readings)
    return write if current and unwanted and after[0] is write else None


def _is_disturbed(index: int, operations: list[Operation], last: float) -> bool:
    """Whether the state changes while the value read at `index` (used until `last`) is still wanted."""
    if last == FOREVER:
        return True
    state = operations[index].state
    for later, operation in enumerate(operations[index + 1 :], index + 1):
        if operation.state == state and operation.in_place:
            return last > later
        if operation.state == state and operation.kind == "write_state" and not operation.skip:
            return last >= later
    return False
