"""Sustained use: how fast a device still is after minutes of work, and what work takes of its battery.

Of a device whose slowing somebody measured, as it was measured, straight between the points and as the last after it:
of another model, that is an assumption. A device that gives off for long all that it takes does not slow down. Any
other is one heat capacity, warmed by the power and cooled through one resistance: C dT/dt = P - T / R. C is the mass
times 0.9 J/(g K), aluminium's; glass and lithium cells have about as much. R is such that the power that can be given
off for long (sustained_w) holds the skin at 43 degrees Celsius, the most that ISO 13732-1 lets skin touch for hours, in
a room of 25. The governor goes a step down while the skin is there and warms, and up again when it is 2 K cooler. Power
falls with the square of speed, between its linear share and the cube that frequency with voltage takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.devices.calibration import Estimate
from stages.schema import Thermal
from stages.schema.devices import Slowed

_HEAT_J_GK = 0.9
_RISE_K, _HYSTERESIS_K = 18.0, 2.0
STEPS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2)
MINUTES = (1, 5, 15)
_MEAN_S = 30  # speeds are means over as much before each of MINUTES: the governor goes up and down
# How much of the loss of speed there may be, a judgement: whoever saw an iPhone 17 Pro lose 33 % to a 2B model saw it
# lose 10 % to a smaller one.
_LEAST, _MOST = 0.3, 1.5
_SLOWEST = 0.1


@dataclass(frozen=True)
class Heat:
    """speeds: of full speed, after each of MINUTES of uninterrupted work. basis: on what they rest, a sentence."""

    speeds: dict[int, Estimate]
    basis: str


def heat_of(thermal: Thermal) -> Heat | None:
    """None where neither a measured run, nor mass, power at full speed and power for long are known."""
    if thermal.slowing:
        basis = "how this chip slowed down in a run that was measured, of another model; the interval is judged"
        return Heat(_measured(thermal.slowing), basis)
    if thermal.peak_w is None or thermal.sustained_w is None:
        return None
    if thermal.sustained_w >= thermal.peak_w:
        basis = "as at once: the device gives off for long what it takes at full speed"
        return Heat({minute: Estimate(1.0, 1.0, 1.0) for minute in MINUTES}, basis)
    if thermal.mass_g is None:
        return None
    basis = "a thermal model, from the device's mass and power; the interval is judged"
    return Heat(_simulated(thermal.mass_g, thermal.peak_w, thermal.sustained_w, thermal.steps or STEPS), basis)


def _measured(slowing: Sequence[Slowed]) -> dict[int, Estimate]:
    seconds, shares = [0.0, *(each.seconds for each in slowing)], [1.0, *(each.share for each in slowing)]
    return {minute: _share(float(np.interp(60 * minute, seconds, shares))) for minute in MINUTES}


def _simulated(mass_g: float, peak_w: float, sustained_w: float, steps: Sequence[float]) -> dict[int, Estimate]:
    capacity, resistance = _HEAT_J_GK * mass_g, _RISE_K / sustained_w
    rise, at, history = 0.0, 0, list[float]()
    for _ in range(60 * MINUTES[-1]):
        speed = steps[at]
        change = (peak_w * speed**2 - rise / resistance) / capacity
        rise += change
        if rise >= _RISE_K and change > 0 and at + 1 < len(steps):
            at += 1
        elif rise < _RISE_K - _HYSTERESIS_K and at:
            at -= 1
        history.append(speed)
    return {minute: _share(sum(history[60 * minute - _MEAN_S : 60 * minute]) / _MEAN_S) for minute in MINUTES}


def _share(speed: float) -> Estimate:
    loss = 1 - speed
    low = min(max(1 - _MOST * loss, _SLOWEST), speed)
    return Estimate(speed, low, 1 - _LEAST * loss, judged=True)
