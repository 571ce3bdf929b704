"""Three pictures: hypervolume by trials, the supernet's ranking against recovery's, and what sizes keep."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from search.contest import FULL, OTHER, SEARCHED, Row
from search.ranking import Subnet
from search.volumes import Volumes

COLORS = {"nsga2": "C0", "tpe": "C4", "random": "0.5", "random, told the designs": "C1"}
MARKS = ("s", "^", "D", "v")


def draw(path: Path, volumes: Sequence[Volumes], subnets: Sequence[Subnet], contests: dict[str, Sequence[Row]]) -> None:
    """What was not measured stays empty. The same figures give the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tapeout", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    drawing, panels = pyplot.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    _volumes(panels[0], volumes)
    _subnets(panels[1], subnets)
    for axes, (name, rows) in zip(panels[2:], contests.items(), strict=False):
        _rows(axes, name, rows)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    if volumes:
        panels[0].legend(frameon=False)
    for axes in [axes for axes in panels[2:] if axes.has_data()][-1:]:  # both have the same
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    drawing.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(drawing)


def _volumes(axes: Any, volumes: Sequence[Volumes]) -> None:
    for by in dict.fromkeys(each.by for each in volumes):
        curves = [each.curve for each in volumes if each.by == by]
        for curve in curves:
            axes.plot(range(1, len(curve) + 1), curve, color=COLORS[by], linewidth=0.6, alpha=0.5)
        count = min(map(len, curves))
        mean = [fmean(curve[place] for curve in curves) for place in range(count)]
        axes.plot(range(1, count + 1), mean, color=COLORS[by], label=by)
    axes.set(xlabel="trials", ylabel="hypervolume")


def _subnets(axes: Any, subnets: Sequence[Subnet]) -> None:
    before, after = ([100 * value for value in values] for values in _accuracies(subnets))
    axes.plot(before, after, "o", color="C0", markersize=4)
    axes.set(xlabel="right on the supernet, %", ylabel="right after recovery, held out, %")


def _accuracies(subnets: Sequence[Subnet]) -> tuple[list[float], list[float]]:
    return [each.before.accuracy for each in subnets], [each.overall for each in subnets]


def _rows(axes: Any, name: str, rows: Sequence[Row]) -> None:
    """half: by parameters; seventy: by bytes."""
    labels = dict.fromkeys(row.label for row in rows if row.label not in (SEARCHED, OTHER, FULL))
    marks = {SEARCHED: "*", OTHER: "*", FULL: "o", **dict(zip(labels, MARKS, strict=False))}
    for row in rows:
        if row.overall is None:
            continue
        size = row.parameters if name == "half" else row.bytes
        color = {SEARCHED: "C3", OTHER: "C1", FULL: "k"}.get(row.label, "C0" if row.weights == "supernet" else "0.5")
        label = f"{row.label}, {row.weights}" if row.weights else row.label
        axes.plot([size], [100 * row.overall], marks[row.label], color=color, label=label)
    axes.set(xlabel=f"{'parameters' if name == 'half' else 'bytes'}, share", ylabel="right, held out, %", title=name)
