"""The trials of a search as a picture: what each answers, against its bytes and its latency."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.searching.trials import Trial

_SVG: dict[Any, Any] = {"svg.hashsalt": "tapeout", "svg.fonttype": "none", "font.size": 9}
_COLORS = {"nsga2": "tab:blue", "tpe": "tab:purple", "random": "tab:gray", "prune": "tab:green"}


def plot(path: Path, trials: Sequence[Trial], frontier: Sequence[Trial]) -> None:
    """An SVG; the same bytes for the same trials."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SVG):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, name, label in zip(
            axes, ("byte_share", "latency_share"), ("bytes", "time of an answer, predicted or measured"), strict=True
        ):
            for by in dict.fromkeys(trial.by for trial in trials):
                shown = [trial for trial in trials if trial.by == by and trial.score.whole]
                _points(axis, shown, name, "o", _COLORS.get(by, "tab:orange"), by, 3.5)
            _points(axis, frontier, name, "x", "tab:red", "frontier", 6)
            axis.set_xlabel(f"{label}, share of the full model's")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("right on the supernet, %")
        axes[0].legend(loc="lower right")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _points(axis: Any, trials: Sequence[Trial], name: str, style: str, color: str, label: str, size: float) -> None:
    xs = [getattr(trial.cost, name) for trial in trials]
    axis.plot(xs, [100 * trial.score.accuracy for trial in trials], style, color=color, label=label, markersize=size)
