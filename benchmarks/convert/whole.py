"""A whole build of FastVLM from a random-weight checkpoint in Apple's layout, for both runtimes, in a fresh project."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.figures import Figure
from engine.projects import under_git

from convert.spent import REPOSITORY, Spent, size_mib, spend

DEVICES = ("iphone-15-pro", "pixel-8")
LIMITS = {"fastvlm-0.5b": (120.0, 3072.0), "fastvlm-1.5b": (None, 4096.0)}  # seconds, MiB of any process
COPIED = ("conf", "stages", "pipelines", "artifacts/reference")


def whole(folder: Path, model: str) -> list[Figure]:
    """Make the checkpoint and the project under folder, build once, and tell what each node took."""
    checkpoint, root = folder / f"{model}-apple", folder / f"{model}-project"
    tapeout = Path(sys.executable).with_name("tapeout")
    words = [tapeout, "new-checkpoint", model, "--layout", "apple", "--seed", "0", "--out", checkpoint]
    made = spend(words, REPOSITORY)
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, root / name)
    under_git(root)
    overrides = [
        f"model={model}",
        f"model.path={checkpoint}",
        f"device=[{','.join(DEVICES)}]",
        "quantize=int4",
        "validate=parity",
        "tracking=none",
    ]
    spent = spend([tapeout, "build", *overrides, "--json"], root, expected=(0, 1), PYTHONPATH=str(root))
    told = json.loads(spent.out)
    failed = [node["name"] for node in told["nodes"] if node["status"] != "built"]
    if failed:
        errors = "\n".join(node.get("error", "") for node in told["nodes"] if node["name"] in failed)
        raise SystemExit(f"{model}: {', '.join(failed)} did not build:\n{errors}")
    found = figures(model, spent, told["nodes"], told["gates"])
    how = f"tapeout new-checkpoint, {size_mib(checkpoint):,.0f} MiB"
    found.append(Figure("  checkpoint made", made.wall, "s", how))
    for device, path in told["bundles"].items():
        found.append(Figure(f"  bundle, {device}", size_mib(root / path), "MiB", path))
    return found


def figures(model: str, spent: Spent, nodes: Sequence[dict[str, Any]], gates: Sequence[dict[str, Any]]) -> list[Figure]:
    """The build's own figures, then each node's, the slowest first."""
    seconds, memory = LIMITS[model]
    slowest = sorted(nodes, key=lambda node: -node["seconds"])
    how = f"`tapeout build model={model} device=[{','.join(DEVICES)}] quantize=int4 validate=parity`, nothing cached"
    found = [
        Figure(f"{model}: build", spent.wall, "s", how, seconds),
        Figure("  CPU", spent.cpu, "CPU s", "user and system, all processes"),
        Figure(f"{model}: memory", spent.peak, "MiB", "peak resident of the largest process", memory),
        Figure(
            "  gates passed", sum(bool(gate["passed"]) for gate in gates), "", f"of {len(gates)}", len(gates), False
        ),
    ]
    for node in slowest:
        name, size = node["name"], node.get("memory_mib") or "?"
        found.append(Figure(f"  {name}", node["seconds"], "s", f"peak {size} MiB"))
    return found
