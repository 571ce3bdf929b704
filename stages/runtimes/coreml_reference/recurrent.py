"""Rules of the recurrent operators. A sequence runs in float32 and is rounded at its end."""

from collections.abc import Callable
from typing import Any

import torch

from stages.runtimes.coreml_reference.operators import Call, Kernel, operator
from stages.runtimes.coreml_reference.package import ProgramError

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "linear": lambda x: x,
    "relu": torch.relu,
    "scaled_tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
Part = dict[str, torch.Tensor]  # weight_ih, weight_hh, and where they are given bias and peephole, of one direction


@operator("lstm")
def lstm(call: Call) -> Kernel:
    """x (S, B, I), initial_h and initial_c (B, directions * H); weights in the order input, forget, output, cell."""
    gate, cell, out = (
        _activation(call, name, default)
        for name, default in (("recurrent_activation", "sigmoid"), ("cell_activation", "tanh"), ("activation", "tanh"))
    )
    clip = call.static("clip", None)

    def step(x: torch.Tensor, state: list[torch.Tensor], part: Part) -> list[torch.Tensor]:
        h, c = state
        i, f, o, z = _projected(x, h, part).chunk(4, -1)
        peep = part["peephole"].chunk(3) if "peephole" in part else None
        i, f = (gate(i + peep[0] * c), gate(f + peep[1] * c)) if peep else (gate(i), gate(f))
        z = cell(z if clip is None else z.clamp(-clip, clip))
        c = f * c + i * z
        return [gate(o + peep[2] * c if peep else o) * out(c), c]

    return _recurrent(call, step, ("initial_h", "initial_c"))


@operator("gru")
def gru(call: Call) -> Kernel:
    """x (S, B, I), initial_h (B, H); weights in the order reset, output, update."""
    gate, out = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "activation", "tanh")

    def step(x: torch.Tensor, state: list[torch.Tensor], part: Part) -> list[torch.Tensor]:
        (h,) = state
        xr, xo, xz = (x @ part["weight_ih"].T + part.get("bias", 0)).chunk(3, -1)
        hr, ho, hz = (h @ part["weight_hh"].T).chunk(3, -1)
        r, z = gate(xr + hr), gate(xz + hz)
        return [(1 - z) * out(xo + r * ho) + z * h]

    return _recurrent(call, step, ("initial_h",))


@operator("rnn")
def rnn(call: Call) -> Kernel:
    """x (S, B, I), initial_h (B, H)."""
    out = _activation(call, "activation", "tanh")
    return _recurrent(call, lambda x, state, part: [out(_projected(x, state[0], part))], ("initial_h",))


def _projected(x: torch.Tensor, h: torch.Tensor, part: Part) -> torch.Tensor:
    return x @ part["weight_ih"].T + h @ part["weight_hh"].T + part.get("bias", 0)


def _activation(call: Call, argument: str, default: str) -> Callable[[torch.Tensor], torch.Tensor]:
    name = call.static(argument, default)
    if name not in _ACTIVATIONS:
        raise ProgramError(f"operation '{call.name}' ({call.type}): unknown activation '{name}'")
    return _ACTIVATIONS[name]


def _recurrent(
    call: Call, step: Callable[[torch.Tensor, list[torch.Tensor], Part], list[torch.Tensor]], initial: tuple[str, ...]
) -> Kernel:
    direction, whole = call.static("direction", "forward"), bool(call.static("output_sequence", False))
    names = call.given("weight_ih", "weight_hh", "bias", "peephole")
    back = tuple(f"{name}_back" for name in names) if direction == "bidirectional" else ()

    def one(x: torch.Tensor, state: list[torch.Tensor], part: Part, reverse: bool) -> list[torch.Tensor]:
        steps = []
        for row in reversed(range(len(x))) if reverse else range(len(x)):
            state = step(x[row], state, part)
            steps.append(state[0])
        sequence = torch.stack(steps[::-1] if reverse else steps) if whole else state[0][None]
        return [sequence, *state]

    def function(x: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states, rest = given[: len(initial)], given[len(initial) :]
        parts = [
            dict(zip(names, rest[start : start + len(names)], strict=True)) for start in range(0, len(rest), len(names))
        ]
        runs = []
        for number, part in enumerate(parts):
            own = [state.chunk(len(parts), -1)[number] for state in states]
            runs.append(one(x, own, part, direction == "reverse" or number == 1))
        return tuple(torch.cat(results, -1) for results in zip(*runs, strict=True))

    given_back: tuple[Any, ...] = tuple(name for name in back if call.has(name))
    if len(given_back) != len(back):
        raise ProgramError(f"operation '{call.name}' ({call.type}): weights of one direction are missing")
    return Kernel(function, ("x", *initial, *names, *back), wide=True)
