"""Which trials a device can have."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.schema import DeviceProfile, ShortlistConfig
from stages.search_artifacts import Supernet, Trials
from stages.searching.costs import Costs
from stages.searching.refinement import order, refined
from stages.searching.studies import mark
from stages.searching.trials import Cost, Trial
from stages.searching.words import described

_LATENCIES = ("token_ms", "first_token_ms", "encode_ms")


@dataclass(frozen=True)
class Bound:
    """What something may be at most; key: where the bound is said."""

    key: str
    value: float
    bound: float

    @property
    def excess(self) -> float:
        """1 where it is just kept; beyond, by how many times it is not."""
        return self.value / self.bound if self.bound else float("inf")

    @property
    def text(self) -> str:
        return f"{self.key} {self.value:.4g} (at most {self.bound:.4g})"


def selected(
    trials: Trials, config: ShortlistConfig, device: DeviceProfile, work: Workspace, supernet: Supernet | None = None
) -> list[dict[str, Any]]:
    """Candidates, the most accurate first: architecture, score and parameters. Nothing else is said of them, so that
    devices which get the same share what comes of them. supernet: needed where config.refine is above 0. Raises
    StageError where nothing fits."""
    full = Cost(**trials.search()["full"])
    found: dict[str, Trial] = {}
    for trial in trials.trials():
        if trial.score.whole:
            found.setdefault(mark(trial.architecture), trial)

    def fits(cost: Cost) -> bool:
        return all(each.excess <= 1 for each in bounds_of(cost, full, config, device))

    fitting = {key: trial for key, trial in found.items() if fits(trial.cost)}
    if not fitting:
        bounds = {key: bounds_of(trial.cost, full, config, device) for key, trial in found.items()}
        raise _infeasible(list(found.values()), bounds, device)
    if config.refine and supernet is not None:
        space, tokenizer = supernet.space(), (supernet.path / "tokenizer.json").stat().st_size
        costs = Costs(space, config.search, {device.name: device}, tokenizer)
        fitting = refined(fitting, space, costs.of, fits, config, work)
    best = sorted(fitting.values(), key=order)[: config.candidates]
    return [
        {"architecture": dict(each.architecture), "score": asdict(each.score), "parameters": each.cost.parameters}
        for each in best
    ]


def bounds_of(cost: Cost, full: Cost, config: ShortlistConfig, device: DeviceProfile) -> list[Bound]:
    """Everything that bounds an architecture on a device."""
    name, budgets = device.name, device.budgets
    size, whole = cost.bytes[name], full.bytes[name]
    found = [Bound("shortlist.bytes", size / whole, config.bytes)] if config.bytes is not None else []
    if budgets.size_mib is not None:
        found.append(Bound(f"device.{name}.budgets.size_mib", size / 2**20, budgets.size_mib))
    if name in cost.latency:
        latency = cost.latency[name]
        if config.latency is not None:
            share = latency["answer_ms"] / full.latency[name]["answer_ms"]
            found.append(Bound("shortlist.latency", share, config.latency))
        for each in _LATENCIES:
            if (most := getattr(budgets, each)) is not None:
                found.append(Bound(f"device.{name}.budgets.{each}", latency[each], most))
    return found


def _infeasible(trials: Sequence[Trial], bounds: Mapping[str, Sequence[Bound]], device: DeviceProfile) -> StageError:
    """With the trial that comes nearest: the one whose worst excess is least."""

    def worst(trial: Trial) -> float:
        return max(each.excess for each in bounds[mark(trial.architecture)])

    nearest = min(trials, key=lambda trial: (worst(trial), -trial.score.accuracy))
    kept = bounds[mark(nearest.architecture)]
    missed = ", ".join(each.text for each in kept if each.excess > 1)
    held = ", ".join(each.text for each in kept if each.excess <= 1)
    met = f"; it keeps {held}" if held else ""
    return StageError(
        f"{device.name}: none of {len(trials)} architectures keeps the budgets. The nearest misses {missed}{met}; "
        f"it has {100 * nearest.score.accuracy:.1f} % right on the supernet: {described(nearest.architecture)}",
        hint=f"Allow {ceil(100 * worst(nearest)) / 100:.2f} times as much, let supernet.space shrink further, or "
        "quantize to fewer bits.",
    )
