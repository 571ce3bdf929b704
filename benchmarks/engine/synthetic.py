"""Graphs of empty stages: what the engine itself costs a node, and whether that stays so as graphs grow."""

import json
import sys
from pathlib import Path
from statistics import median

from engine.figures import Figure
from engine.projects import Project, layered
from engine.timing import Cost, middle, spend, tapeout

SIZES = (100, 500, 1000, 2000)
STANDARD = 500  # nodes, of which the targets speak
DEVICES = 50  # in the other shape of as many nodes
STEADY = 1.25  # the last nodes may cost so much more than the first ones and pass as linear: the noise of a median
PLANNING = """
import json, sys, time
from pathlib import Path
from pipelines.config import load_config
from pipelines.explain import preview
from pipelines.plan import make_plan
from pipelines.project import find_project
project, times = find_project(Path.cwd()), [time.process_time()]
sys.path.insert(0, str(project.root))
config = load_config(project, []); times.append(time.process_time())
plan = make_plan(project, config); times.append(time.process_time())
list(preview(project, plan)); times.append(time.process_time())
print(json.dumps([after - before for before, after in zip(times, times[1:])]))
"""


def synthetic(folder: Path, repeats: int) -> tuple[list[Figure], dict[int, dict[str, float]]]:
    """Return the figures, and CPU seconds by number of nodes for the plot."""
    chains = {size: layered(folder / f"layers{size}", size) for size in SIZES}
    stages = STANDARD // DEVICES
    spread = layered(folder / "spread", stages, DEVICES)
    costs = {size: costs_of(project, repeats) for size, project in chains.items()}
    scaling = {size: {name: middle(each) for name, each in found.items()} for size, found in costs.items()}
    wall = middle(costs[STANDARD]["cold"], "wall")
    other = {name: middle(each) for name, each in costs_of(spread, repeats).items()}
    inside = planning(chains[STANDARD], repeats)
    shape = f"{STANDARD} stages in one pipeline"
    figures = shape_figures(scaling[STANDARD], f"{STANDARD} x 1", shape)
    figures.append(Figure("  cold, by the clock", 1000 * wall / STANDARD, "ms/node", f"{shape}: wall, all cores"))
    for name, seconds in inside.items():
        target = 0.5 if name == "make_plan" else None
        figures.append(
            Figure(f"  in process: {name}", seconds, "CPU s", f"{shape}: the call alone, all cached", target)
        )
    figures += shape_figures(other, f"{stages} x {DEVICES}", f"{stages} stages x {DEVICES} devices")
    for name, what in (
        ("cold", "run"),
        ("cached", "find cached"),
        ("plan_first", "plan first"),
        ("plan_cached", "plan, cached"),
    ):
        ends = ((SIZES[0], SIZES[-2]), (SIZES[-2], SIZES[-1]))
        early, late = (slope(scaling, name, *each) for each in ends)
        grown = ", ".join(
            f"{price:.2f} ms from {first} to {last}" for price, (first, last) in zip((early, late), ends, strict=True)
        )
        figures.append(Figure(f"linear: {what}", late / early, "", f"one more node: {grown}; the ratio", STEADY))
    return figures, scaling


def costs_of(project: Project, repeats: int) -> dict[str, list[Cost]]:
    """Return what each command costs, in turn, on a project of which nothing is known and then all."""
    found: dict[str, list[Cost]] = {}

    def note(fresh: Project, name: str, *words: str) -> None:
        found.setdefault(name, []).append(spend(tapeout(*words), fresh.root))

    spend(tapeout("plan"), project.root)  # compiles its modules
    for _ in range(repeats):
        fresh = project.copy()
        note(fresh, "plan_first", "plan")
        note(fresh, "plan_again", "plan")
        fresh = project.copy()
        for name, command in (("cold", "build"), ("cached", "build"), ("plan_cached", "plan")):
            note(fresh, name, command)
    return found


def shape_figures(seconds: dict[str, float], short: str, shape: str) -> list[Figure]:
    """Return the figures of one graph of STANDARD nodes, start-up included."""
    whole = f"{shape}: CPU of the command and its workers, with start-up"
    return [
        Figure(f"find a node cached, {short}", 1000 * seconds["cached"] / STANDARD, "ms/node", f"{whole}, / nodes", 3),
        Figure(
            f"run a node, {short}", 1000 * seconds["cold"] / STANDARD, "ms/node", f"{whole}, / nodes; nothing known", 10
        ),
        Figure(
            f"plan, all cached, {short}",
            seconds["plan_cached"],
            "CPU s",
            f"{shape}: `tapeout plan`, whole command",
            0.5,
        ),
        Figure(
            f"plan again, nothing built, {short}",
            seconds["plan_again"],
            "CPU s",
            f"{shape}: `tapeout plan` once more",
            0.5,
        ),
        Figure(
            f"plan, nothing known, {short}",
            seconds["plan_first"],
            "CPU s",
            f"{shape}: `tapeout plan`, Hydra composes all",
            0.5,
        ),
    ]


def planning(project: Project, repeats: int) -> dict[str, float]:
    """Return CPU seconds of the parts of planning, called in a process that has imported them."""
    spend(tapeout("build"), project.root)
    runs = [json.loads(spend([sys.executable, "-c", PLANNING], project.root).out) for _ in range(repeats)]
    return {
        name: median(run[place] for run in runs) for place, name in enumerate(("load_config", "make_plan", "preview"))
    }


def slope(scaling: dict[int, dict[str, float]], name: str, few: int, many: int) -> float:
    """Return the CPU milliseconds that one more node costs between two sizes."""
    return 1000 * (scaling[many][name] - scaling[few][name]) / (many - few)
