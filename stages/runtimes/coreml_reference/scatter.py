"""Rules of the operators that read or write where other tensors say: gathers, scatters, sorts, one-hot vectors."""

from collections.abc import Callable

import torch

from stages.runtimes.coreml_reference.operators import Call, Kernel, operator
from stages.runtimes.coreml_reference.package import ProgramError
from stages.runtimes.coreml_reference.weights import Weight

_REDUCES = {"mul": "prod", "max": "amax", "min": "amin"}


@operator("gather")
def gather(call: Call) -> Kernel:
    axis, batch = call.static("axis", 0) % max(call.ranks["x"], 1), call.static("batch_dims", 0)
    before = (slice(None),) * axis

    def rows(weight: Weight, indices: torch.Tensor) -> torch.Tensor:
        numbers = indices.long().reshape(-1) % weight.shape[0]
        return weight.rows(numbers).reshape(*indices.shape, *weight.shape[1:]).to(call.dtypes["x"])

    def function(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return x[(*before, indices.long())]

    def batched(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Axis by axis of the batch, which both have."""
        found = x.flatten(0, batch - 1), indices.long().flatten(0, batch - 1)
        within = (slice(None),) * (axis - batch)
        results = [part[(*within, places)] for part, places in zip(*found, strict=True)]
        return torch.stack(results).reshape(*x.shape[:batch], *results[0].shape)

    if batch:
        return Kernel(batched, ("x", "indices"))
    return Kernel(function, ("x", "indices"), packed=None if axis else rows)


@operator("gather_along_axis")
def gather_along_axis(call: Call) -> Kernel:
    axis = call.static("axis", 0)
    return Kernel(lambda x, indices: x.gather(axis, indices.long() % x.shape[axis]), ("x", "indices"))


@operator("gather_nd")
def gather_nd(call: Call) -> Kernel:
    batch = call.static("batch_dims", 0)

    def pick(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return x[tuple(indices.long().unbind(-1))]

    def function(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        if not batch:
            return pick(x, indices)
        found = x.flatten(0, batch - 1), indices.flatten(0, batch - 1)
        results = [pick(part, places) for part, places in zip(*found, strict=True)]
        return torch.stack(results).reshape(*x.shape[:batch], *results[0].shape)

    return Kernel(function, ("x", "indices"))


@operator("scatter")
def scatter(call: Call) -> Kernel:
    axis, combine = call.static("axis", 0), _combination(call)

    def function(data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        moved = data.movedim(axis, 0)
        places = indices.long().reshape(-1) % len(moved)
        flat, shape = moved.reshape(len(moved), -1), moved.shape
        changes = updates.movedim(axis, 0).reshape(len(places), -1)
        return combine(flat, places[:, None].expand_as(changes), changes).reshape(shape).movedim(0, axis)

    return Kernel(function, ("data", "indices", "updates"))


@operator("scatter_along_axis")
def scatter_along_axis(call: Call) -> Kernel:
    axis, combine = call.static("axis", 0), _combination(call)

    def function(data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        moved, places = data.movedim(axis, 0), indices.long().movedim(axis, 0) % data.shape[axis]
        return combine(moved, places, updates.movedim(axis, 0)).movedim(0, axis)

    return Kernel(function, ("data", "indices", "updates"))


@operator("scatter_nd")
def scatter_nd(call: Call) -> Kernel:
    combine = _combination(call)

    def function(data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        depth = indices.shape[-1]
        sizes = data.shape[:depth]
        numbers = torch.zeros(indices.shape[:-1], dtype=torch.long)
        for size, place in zip(sizes, indices.long().unbind(-1), strict=True):
            numbers = numbers * size + place % size
        flat = data.reshape(sizes.numel(), -1)
        changes = updates.reshape(numbers.numel(), -1)
        return combine(flat, numbers.reshape(-1, 1).expand_as(changes), changes).reshape(data.shape)

    return Kernel(function, ("data", "indices", "updates"))


def _combination(call: Call) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """(data, places along the first axis, changes) -> data changed, by the call's mode."""
    mode = call.static("mode", "update" if call.type == "scatter_nd_update" else "add")
    if mode == "update":
        return lambda data, places, changes: data.scatter(0, places, changes)
    if mode in ("add", "sub"):
        sign = 1 if mode == "add" else -1
        return lambda data, places, changes: data.scatter_add(0, places, sign * changes)
    if mode == "div":
        return lambda data, places, changes: data / torch.ones_like(data).scatter_reduce(0, places, changes, "prod")
    if mode not in _REDUCES:
        raise ProgramError(f"operation '{call.name}' ({call.type}): unknown mode '{mode}'")
    return lambda data, places, changes: data.scatter_reduce(0, places, changes, _REDUCES[mode])


@operator("topk")
def topk(call: Call) -> Kernel:
    axis, descending = call.static("axis", -1), not call.static("ascending", False)
    indices_only = not call.static("return_indices", True)

    def function(x: torch.Tensor, k: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        values, places = x.sort(dim=axis, descending=descending, stable=True)
        count = 1 if k is None else int(k)
        count = x.shape[axis] if count < 0 else count
        values, places = values.narrow(axis, 0, count), places.narrow(axis, 0, count).int()
        return (values,) if indices_only else (values, places)

    return Kernel(function, ("x", *call.given("k")))


@operator("argsort")
def argsort(call: Call) -> Kernel:
    axis, descending = call.static("axis", -1), not call.static("ascending", False)
    return Kernel(lambda x: x.argsort(dim=axis, descending=descending, stable=True).int(), ("x",))


@operator("non_zero")
def non_zero(call: Call) -> Kernel:
    return Kernel(lambda x: x.nonzero().int(), ("x",))


@operator("one_hot")
def one_hot(call: Call) -> Kernel:
    axis = call.static("axis", -1)
    on, off = call.constants.get("on_value", torch.tensor(1)), call.constants.get("off_value", torch.tensor(0))

    def function(indices: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        hot = indices[..., None] == torch.arange(int(size), dtype=indices.dtype)
        return torch.where(hot, on, off).movedim(-1, axis)

    return Kernel(function, ("indices", "one_hot_vector_size"))
