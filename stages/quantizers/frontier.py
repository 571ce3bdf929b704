"""The frontier: what the best allocations of every size cost, beside the chosen one and the uniform choices."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.quantizers.allocation import Allocated, Search
from stages.quantizers.candidates import takes
from stages.quantizers.choices import Choice
from stages.quantizers.weights import Weights
from stages.schema import DeviceProfile

_POINTS = 12
_SVG: dict[Any, Any] = {"svg.hashsalt": "tapeout", "svg.fonttype": "none", "font.size": 9}


def frontier(search: Search, chosen: Allocated, parameters: int, most: int | None) -> list[dict[str, Any]]:
    """Points by ascending bytes, from the smallest allocation to the largest or to `most` bytes: the knapsack's
    solutions, measured but not improved."""
    largest = max(min(search.largest, most or search.largest), chosen.bytes, search.smallest)
    span = math.log(largest / search.smallest)
    sizes = [int(search.smallest * math.exp(span * place / (_POINTS - 1))) for place in range(_POINTS)]
    found = {point.bytes: point for point in (search.unimproved(max(size, search.smallest)) for size in sizes)}
    return [row(found[size], parameters) for size in sorted(found)]


def row(point: Allocated, parameters: int) -> dict[str, Any]:
    judged = point.judged
    return {
        "bytes": point.bytes,
        "bits": _bits(point.bytes, parameters),
        "estimate": point.cost,
        "kl": judged.kl if judged else None,
        "high": point.high if judged else None,
        "agreement": judged.agreement if judged else None,
        "accuracy": judged.accuracy if judged else None,
    }


def uniform(table: Mapping[str, Any], weights: Weights, device: DeviceProfile) -> list[dict[str, Any]]:
    """The uniform choices that the device takes, by ascending bytes."""
    rows = []
    for each in table["uniform"]:
        made = {name: Choice.from_dict(values) for name, values in each["choices"].items()}
        if all(takes(device, choice, weights.layers[name].shape) for name, choice in made.items()):
            measured = {key: each[key] for key in ("label", "bytes", "kl", "high", "agreement", "accuracy")}
            rows.append({"bits": _bits(each["bytes"], table["parameters"]), **measured})
    return rows


def plot(
    path: Path,
    title: str,
    chosen: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
) -> None:
    """bytes against divergence (its estimate where nothing was measured) and accuracy, as SVG; the same bytes for the
    same numbers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SVG):
        figure = Figure(figsize=(7.2, 6.4), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True)
        figure.suptitle(title)
        series = [
            ("allocations", points, "o-", "tab:blue"),
            ("uniform choices", others, "x", "tab:gray"),
            ("chosen", [chosen], "*", "tab:red"),
        ]
        for name, rows, style, color in series:
            size = 14 if style == "*" else 5
            for axis, key in zip(axes, ("kl", "accuracy"), strict=True):
                shown = [
                    (each["bytes"] / 1e6, each[key] if each[key] is not None else each.get("estimate")) for each in rows
                ]
                if key == "accuracy":
                    shown = [(each["bytes"] / 1e6, 100 * each[key]) for each in rows if each[key] is not None]
                if shown:
                    axis.plot(*zip(*shown, strict=True), style, color=color, label=name, markersize=size)
        axes[0].set_yscale("log")
        axes[0].set_ylabel("KL to the float model, nats a token")
        axes[1].set_ylabel("exact answers, %")
        axes[1].set_xlabel("weights, MB")
        axes[0].legend()
        for axis in axes:
            axis.grid(alpha=0.3)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _bits(size: int, parameters: int) -> float:
    return round(8 * size / parameters, 4)
