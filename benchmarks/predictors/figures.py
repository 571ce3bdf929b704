"""Errors of a quantity's predictions, ours and the rooflines', as one row of the table."""

from dataclasses import asdict, dataclass

import numpy as np

from stages.devices.calibration import Array

from .naive import half, naive
from .rows import Table

QUANTITIES = {
    "decode": "decode tokens/s",
    "prefill": "prefill tokens/s",
    "first_token": "time to first token",
    "encode": "encoder latency",
    "memory": "encoder peak memory",
}
_RATES = ("decode", "prefill")


@dataclass(frozen=True)
class Figure:
    """Medians of |predicted / measured - 1|. ours, naive: over all rows; half: of the roofline at half of the peaks;
    published: ours, over the rows whose model's architecture or arithmetic is known by name. coverage: of intervals
    that should hold 90 %."""

    split: str
    quantity: str
    rows: int
    models: int
    ours: float
    naive: float
    half: float
    published: float | None
    coverage: float | None

    @property
    def ratio(self) -> float:
        return self.ours / self.naive

    def to_json(self) -> dict[str, object]:
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}
        return {**rounded, "ratio": round(self.ratio, 4)}


def figure(split: str, table: Table, logarithms: Array, covered: float | None) -> Figure:
    """table: prepared. logarithms: predictions."""
    errors = _errors(table, np.exp(logarithms))
    return Figure(
        split,
        table.quantity,
        len(table),
        len(set(table.models)),
        float(np.median(errors)),
        float(np.median(_errors(table, naive(table)))),
        float(np.median(_errors(table, half(table)))),
        float(np.median(errors[table.known])) if table.known.any() else None,
        covered,
    )


def _errors(table: Table, predicted: Array) -> Array:
    if table.quantity in _RATES:  # of tokens a second, as published
        return np.abs(table.measured / predicted - 1)
    return np.abs(predicted / table.measured - 1)


def shown(figures: list[Figure]) -> str:
    heads = ("ours", "named", "naive", "ratio", "half", "covered")
    lines = [f"{'held out':<10}{'quantity':<22}{'rows':>6}{'models':>8}" + "".join(f"{head:>9}" for head in heads)]
    for each in figures:
        shares = (each.ours, each.published, each.naive, None, each.half, each.coverage)
        cells = [f"{'' if share is None else f'{100 * share:.1f} %':>9}" for share in shares]
        cells[3] = f"{each.ratio:>9.2f}"
        lines.append(f"{each.split:<10}{QUANTITIES[each.quantity]:<22}{each.rows:>6}{each.models:>8}" + "".join(cells))
    return "\n".join(lines)
