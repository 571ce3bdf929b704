"""Sustained use: how fast a device still is after minutes of work, and what work takes of its battery.

One heat capacity, warmed by the power and cooled through one resistance: C dT/dt = P - T / R. C is the mass times
0.9 J/(g K), aluminium's; glass and lithium cells have about as much. R is such that the power that can be given off for
long (sustained_w) holds the skin at 43 degrees Celsius, the most that ISO 13732-1 lets skin touch for hours, in a room
of 25. The governor goes a step down while the skin is there and warms, and up again when it is 2 K cooler. Power falls
with the square of speed, between its linear share and the cube that frequency with voltage takes.
"""

from dataclasses import dataclass

from stages.schema import Thermal

_HEAT_J_GK = 0.9
_RISE_K, _HYSTERESIS_K = 18.0, 2.0
STEPS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3, 0.2)
MINUTES = (1, 5, 15)
_MEAN_S = 30  # speeds are means over as much before each of MINUTES: the governor goes up and down


@dataclass(frozen=True)
class Heat:
    """speeds: of full speed, after each of MINUTES of uninterrupted work."""

    speeds: dict[int, float]


def heat_of(thermal: Thermal) -> Heat | None:
    """None where mass, power at full speed or power for long is not known."""
    if thermal.mass_g is None or thermal.peak_w is None or thermal.sustained_w is None:
        return None
    capacity, resistance = _HEAT_J_GK * thermal.mass_g, _RISE_K / thermal.sustained_w
    steps = tuple(thermal.steps) if thermal.steps else STEPS
    rise, at, history = 0.0, 0, list[float]()
    for _ in range(60 * MINUTES[-1]):
        speed = steps[at]
        change = (thermal.peak_w * speed**2 - rise / resistance) / capacity
        rise += change
        if rise >= _RISE_K and change > 0 and at + 1 < len(steps):
            at += 1
        elif rise < _RISE_K - _HYSTERESIS_K and at:
            at -= 1
        history.append(speed)
    return Heat({minute: sum(history[60 * minute - _MEAN_S : 60 * minute]) / _MEAN_S for minute in MINUTES})
