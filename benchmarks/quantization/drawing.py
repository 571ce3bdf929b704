"""KL against size, ours and each peer's, on equal weights. The same figures give the same bytes."""

from collections.abc import Sequence
from pathlib import Path

from quantization.assembled import Basis
from quantization.entries import Entry, frontier

MARKS = {"nncf": "s", "coremltools": "^", "onnxruntime": "D"}
KINDS = {"uniform": "ours, one format", "auto": "ours, auto", "floor": "ours, auto", "qat": "ours, trained"}
COLORS = {"uniform": "C0", "auto": "C3", "floor": "C3", "qat": "C2"}


def draw(path: Path, entries: Sequence[Entry]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "tapeout", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
    shown = [each for each in entries if not each.missing and (each.ours or each.basis is Basis.same)]
    for who, mark in MARKS.items():
        theirs = [each for each in shown if each.who == who and each.counted]
        axes.plot(*_points(theirs), mark, color="0.6", markersize=4, label=who)
    peers = frontier([each for each in shown if not each.ours and each.counted])
    axes.plot(*_points(peers), color="0.6", linewidth=1, label="best of the peers")
    for kind, label in KINDS.items():
        mine = [each for each in shown if each.ours and each.kind == kind]
        axes.plot(*_points(mine), "o", color=COLORS[kind], markersize=5, label=label if kind != "floor" else None)
    axes.plot(*_points(frontier([each for each in shown if each.kind == "uniform"])), color="C0", linewidth=1)
    axes.set(xlabel="bytes on disk, thousands", ylabel="KL to the float model, nats an answer token", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    drawing.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(drawing)


def _points(entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    return [each.bytes / 1000 for each in entries], [each.kl for each in entries]
