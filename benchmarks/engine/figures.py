"""A figure with its target, the table of them, and the plot of the scaling run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CURVES = {  # of engine.synthetic's costs
    "cold": "build, cold",
    "plan_first": "plan, for the first time",
    "cached": "build, all cached",
    "plan_cached": "plan, all cached",
}


@dataclass(frozen=True)
class Figure:
    """One measured value. target: its bound, None where there is none. at_most: whether the bound is an upper one."""

    name: str
    value: float
    unit: str
    how: str
    target: float | None = None
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the value keeps its bound; None where there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table, with how each was measured."""
    rows = [("figure", "measured", "target", "", "how")]
    for each in figures:
        bound = "" if each.target is None else f"{'<=' if each.at_most else '>='} {each.target:.4g}"
        verdict = {True: "met", False: "MISSED", None: ""}[each.met]
        rows.append((each.name, f"{each.value:.3g} {each.unit}", bound, verdict, each.how))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def plot(path: Path, scaling: Mapping[int, Mapping[str, float]]) -> None:
    """Draw CPU seconds against nodes. The same figures give the same bytes.

    scaling: {nodes: {name of a curve: CPU seconds}}.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tapeout", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    sizes = sorted(scaling)
    drawing, (total, each) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for curve, label in CURVES.items():
        seconds = [scaling[size][curve] for size in sizes]
        total.plot(sizes, seconds, marker="o", markersize=3, label=label)
        each.plot(
            sizes, [1000 * value / size for value, size in zip(seconds, sizes, strict=True)], marker="o", markersize=3
        )
    total.set(xlabel="nodes", ylabel="CPU s, whole command", xlim=(0, None), ylim=(0, None))
    each.set(xlabel="nodes", ylabel="CPU ms a node", xlim=(0, None), ylim=(0, None))
    total.legend(frameon=False)
    for axes in (total, each):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    drawing.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(drawing)
