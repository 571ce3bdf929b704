"""What a search came to: trials.jsonl, search.json, frontier.svg, summary.txt and gates.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from pipelines.workspace import Workspace
from stages.schema import DeviceProfile, SearchConfig
from stages.schema.search import LatencySource, Sampler
from stages.search_artifacts import Trials
from stages.searching.costs import Costs
from stages.searching.hypervolume import hypervolume
from stages.searching.plot import plot
from stages.searching.trials import Cost, Trial, front, point, write_trials
from stages.searching.words import described, mebibytes

RATIO = "search.hypervolume_ratio"
_SHOWN = 12  # points of the frontier in the summary


def conclude(
    trials: Sequence[Trial],
    costs: Costs,
    config: SearchConfig,
    devices: Mapping[str, DeviceProfile],
    work: Workspace,
) -> Trials:
    """Write what was tried to work.out, with figures for MLflow."""
    result = Trials(work.out)
    write_trials(result.path / "trials.jsonl", trials)
    volumes = _volumes(trials)
    frontier = front(trials)
    ratio = _ratio(volumes, config.sampler)
    result.write_json(
        "search.json",
        {
            "sampler": config.sampler.value,
            "devices": {name: device.title for name, device in devices.items()},
            "full": asdict(costs.full),
            "hypervolume": volumes,
            "ratio": ratio,
            "frontier": [asdict(trial) for trial in frontier],
        },
    )
    plot(result.path / "frontier.svg", trials, frontier)
    lines = [*_verdict(volumes, ratio, config), *_rows(frontier, costs.full, config)]
    (result.path / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result.write_json("gates.json", {"gates": _gates(volumes, ratio, config)})
    for by, values in volumes.items():
        work.metric(f"hypervolume.{by}", fmean(values))
    if ratio is not None:
        work.metric("hypervolume_ratio", ratio)
    for line in lines:
        work.log(line)
    return result


def _volumes(trials: Sequence[Trial]) -> dict[str, list[float]]:
    """{sampler: the hypervolume of each seed}."""
    found: dict[str, dict[int, list[Trial]]] = {}
    for trial in trials:
        if trial.score.whole:
            found.setdefault(trial.by, {}).setdefault(trial.seed, []).append(trial)
    return {by: [hypervolume(map(point, each)) for each in seeds.values()] for by, seeds in found.items()}


def _ratio(volumes: Mapping[str, Sequence[float]], sampler: Sampler) -> float | None:
    """Of the search's mean to random search's; None where there is nothing to compare."""
    chance = Sampler.random.value
    if sampler.value == chance or not {sampler.value, chance} <= volumes.keys() or not fmean(volumes[chance]):
        return None
    return fmean(volumes[sampler.value]) / fmean(volumes[chance])


def _gates(volumes: Mapping[str, Sequence[float]], ratio: float | None, config: SearchConfig) -> list[dict[str, Any]]:
    """Where chance found nothing there is no ratio, and the search must have found something."""
    if config.beat_random is None or config.sampler not in (Sampler.nsga2, Sampler.tpe):
        return []
    passed = ratio >= config.beat_random if ratio is not None else fmean(volumes.get(config.sampler.value, [0.0])) > 0
    bound = {"value": ratio, "bound": config.beat_random, "kind": "min", "passed": passed}
    return [{"metric": RATIO, "task": None, **bound}]


def _verdict(volumes: Mapping[str, Sequence[float]], ratio: float | None, config: SearchConfig) -> list[str]:
    lines = []
    for by, values in volumes.items():
        each = ", ".join(f"{value:.4f}" for value in values)
        lines.append(f"hypervolume of {by}: {fmean(values):.4f} (by seed: {each})")
    if ratio is not None:
        beaten = "beats random search" if ratio > 1 else "does NOT beat random search"
        lines.append(
            f"{config.sampler.value} {beaten}: {ratio:.3f} x its hypervolume, at {config.trials} trials a seed"
        )
    return lines


def _rows(frontier: Sequence[Trial], full: Cost, config: SearchConfig) -> list[str]:
    """The frontier's points, or so many of them, evenly by place; before them what their shares are of."""
    count = min(_SHOWN, len(frontier))
    shown = [frontier[round(place * (len(frontier) - 1) / max(1, count - 1))] for place in range(count)]
    lines = [f"the full model: {_full(full, config)}"]
    lines += [
        f"the frontier: {len(frontier)} architectures" + (f", {count} of them:" if count < len(frontier) else ":"),
        "  (right: on the supernet, before recovery; x: shares of the full model, means over the devices)",
    ]
    for trial in shown:
        size = mebibytes(max(trial.cost.bytes.values()))
        shares = f"{trial.cost.byte_share:.2f} x bytes ({size})"
        shares += f", {trial.cost.latency_share:.2f} x latency" if trial.cost.latency else ""
        lines.append(f"  {100 * trial.score.accuracy:5.1f} % right, {shares}: {described(trial.architecture)}")
    return lines


def _full(full: Cost, config: SearchConfig) -> str:
    """What the full model takes on each device, and how its time is known."""
    how = "measured on this machine" if config.latency is LatencySource.host else "predicted"
    parts = []
    for name, size in full.bytes.items():
        time = f", {full.latency[name]['answer_ms']:.3g} ms an answer ({how})" if name in full.latency else ""
        parts.append(f"{name} {mebibytes(size)}{time}")
    return "; ".join(parts)
