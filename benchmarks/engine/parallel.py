"""Twelve devices cold with one worker and with two, beside what two processes can gain on this machine at all."""

import json
from statistics import median
from typing import Any

import yaml

from engine.figures import Figure
from engine.projects import Project
from engine.timing import LOOPS, Cost, ceiling, middle, spend, spend_together, tapeout

TARGET = 1.6


def parallel(first: Project, second: Project, repeats: int) -> list[Figure]:
    """Build `first` with one worker and with two, in turn. second: a copy, for two builds at once."""
    costs: dict[int, list[Cost]] = {1: [], 2: []}
    limits: dict[str, list[float]] = {name: [] for name in LOOPS}
    at_once = []
    for turn in range(repeats):
        for jobs, found in costs.items():
            first.forget()
            words = tapeout("build", "--json", "--jobs", str(jobs))
            found.append(spend(words, first.root, {"PYTHONPATH": str(first.root)}))
        for name, found in limits.items():
            found.append(ceiling(name))
        if turn % 2 == 0:  # they take long and vary little
            for project in (first, second):
                project.forget()
            own = {"PYTHONPATH": str(first.root)}
            at_once.append(spend_together(tapeout("build", "--jobs", "1"), [first.root, second.root], own))
    alone, both = (middle(found, "wall") for found in costs.values())
    stages = {jobs: seconds_by(found) for jobs, found in costs.items()}
    work, chain = sum(stages[1].values()), longest_chain(first, stages[1])
    where = f"12 devices x 7 stages = {first.nodes} nodes"
    return [
        Figure(
            "2 workers against 1",
            alone / both,
            "x",
            f"{where}: wall of cold builds, --jobs 1 / --jobs 2",
            TARGET,
            False,
        ),
        Figure("  --jobs 1", alone, "s", f"{where}: wall; {middle(costs[1]):.1f} CPU s"),
        Figure("  --jobs 2", both, "s", f"{where}: wall; {middle(costs[2]):.1f} CPU s"),
        *(
            Figure(
                f"  ceiling: {name} loop",
                median(found),
                "x",
                "2 processes, one after the other / at once, with their start",
            )
            for name, found in limits.items()
        ),
        Figure(
            "  ceiling: whole builds",
            2 * alone / median(at_once),
            "x",
            "2 x wall of --jobs 1 / wall of two such builds at once",
        ),
        Figure(
            "  the graph's own limit",
            alone / (alone - work + max(chain, work / 2)),
            "x",
            f"of {work:.1f} s in stages, the longest chain takes {chain:.1f} s",
        ),
        Figure(
            "  the same work, made slower",
            sum(stages[2].values()) / work,
            "x",
            "seconds in stages, --jobs 2 / --jobs 1: imports twice, shared core",
        ),
        Figure("  workers busy", sum(stages[2].values()) / (2 * both), "", "--jobs 2: seconds in stages / (2 x wall)"),
        *by_stage(stages),
    ]


def seconds_by(costs: list[Cost]) -> dict[str, float]:
    """Return the median seconds of each node."""
    runs: list[dict[str, Any]] = [
        {node["name"]: node["seconds"] for node in json.loads(cost.out)["nodes"]} for cost in costs
    ]
    return {name: median(run[name] for run in runs) for name in runs[0]}


def longest_chain(project: Project, seconds: dict[str, float]) -> float:
    """Return the seconds of the slowest chain of nodes that wait for each other, by the dvc.yaml that was written."""
    stages = yaml.load(
        (project.root / "dvc.yaml").read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )["stages"]
    makers = {out: name for name, stage in stages.items() for out in stage["outs"]}
    ends: dict[str, float] = {}
    for name, stage in stages.items():  # each comes after what it needs
        ends[name] = seconds[name] + max((ends[makers[path]] for path in stage["deps"] if path in makers), default=0.0)
    return max(ends.values())


def by_stage(stages: dict[int, dict[str, float]]) -> list[Figure]:
    """Return the seconds of each stage over its nodes: where the time goes."""
    names = list(dict.fromkeys(name.partition("-")[0] for name in stages[1]))
    totals = {
        jobs: {stage: sum(s for name, s in found.items() if name.partition("-")[0] == stage) for stage in names}
        for jobs, found in stages.items()
    }
    return [
        Figure(
            f"  stage {stage}",
            totals[1][stage],
            "s",
            f"all its nodes, --jobs 1; {totals[2][stage]:.1f} s with --jobs 2",
        )
        for stage in names
    ]
