"""A build in which nothing is to do: what it costs, beside what Hydra's import, `dvc repro` and Olive cost."""

import json
import sys

from engine.figures import Figure
from engine.olive import Olive
from engine.projects import Project
from engine.timing import Cost, middle, spend, tapeout

IMPORT = [sys.executable, "-c", "import hydra, omegaconf"]


def noop(project: Project, repeats: int, with_dvc: bool, olive: Olive | None) -> list[Figure]:
    """Measure the commands in turn, so that what else the machine does falls on all alike.

    project: twelve devices; it is built first. olive: its workflow; it is run once first.
    """
    own = {"PYTHONPATH": str(project.root)}
    spend(tapeout("build"), project.root, own)
    nodes = json.loads(spend(tapeout("build", "--json"), project.root, own).out)["nodes"]
    if any(node["status"] != "cached" for node in nodes) or len(nodes) != project.nodes:
        raise SystemExit("the second build was no no-op: not all nodes are cached")
    commands: dict[str, list[Cost]] = {"tapeout": [], "import": [], "dvc": [], "olive": []}
    cold = olive.run() if olive else None
    for turn in range(repeats + 1):  # the first is not counted: it fills the disk's cache
        commands["import"].append(spend(IMPORT, project.root, own))
        commands["tapeout"].append(spend(tapeout("build"), project.root, own))
        if with_dvc:
            commands["dvc"].append(spend(["dvc", "repro"], project.root, own))
            if "up to date" not in commands["dvc"][-1].out:
                raise SystemExit(f"dvc repro ran something: this is no no-op\n{commands['dvc'][-1].out}")
        if olive:
            commands["olive"].append(olive.run())
        if turn == 0:
            for costs in commands.values():
                costs.clear()
    ours, imports = middle(commands["tapeout"]), middle(commands["import"])
    how = f"`tapeout build`, 12 devices x 7 stages = {project.nodes} nodes, all cached; whole process"
    figures = [
        Figure("no-op build", ours, "CPU s", how, 1.0),
        Figure("no-op build, wall", middle(commands["tapeout"], "wall"), "s", "the same runs, by the clock"),
        Figure("import hydra, omegaconf", imports, "CPU s", "`python -c 'import hydra, omegaconf'`, in turn with it"),
        Figure(
            "no-op build against the import",
            ours,
            "CPU s",
            "the target is 1.3 x the import's + 0.3 s",
            1.3 * imports + 0.3,
        ),
    ]
    if with_dvc:
        dvc = middle(commands["dvc"])
        how = "the same dvc.yaml in the same project, nothing to do"
        figures += [
            Figure("dvc repro", dvc, "CPU s", how),
            Figure("no-op build / dvc repro", ours / dvc, "", "ratio of the medians", 1 / 4),
        ]
    if olive and cold:
        warm = middle(commands["olive"])
        how = "`olive run`: convert to ONNX, int4, latency of a 1 M decoder; 2 passes, 1 device"
        figures += [
            Figure("Olive, cold", cold.cpu, "CPU s", f"{how}; once"),
            Figure("Olive, warm", warm, "CPU s", f"{how}; all its results cached"),
            Figure("no-op build / Olive, warm", ours / warm, "", "ratio of the medians", 1 / 8),
        ]
    return figures
