"""What calibrating and quantizing a 0.5B decoder takes: time and memory.

python benchmarks/quantization_scale.py [--model MODEL] [--fisher] [--samples N] [--tokens N] [--threads N] [--work DIR]
                                        [--json FILE]

Makes a checkpoint of random weights, then builds its load, calibrate and quantize (GPTQ, 4 bits in groups of 32) in a
fresh project, through `tapeout build`, whose own figures these are. Calibration runs on drawn token numbers
(calibrate.draw=tokens): time and memory do not depend on what they say. Takes 8 GB of disk.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from convert.spent import REPOSITORY, Spent, size_mib, spend
from engine.figures import Figure, table
from engine.projects import under_git

DEVICE, STAGES = "pixel-8", ("load", "calibrate", "quantize")
SECONDS, MEMORY = 1800.0, 4096.0  # of calibrate and quantize together on two cores; MiB of any process
COPIED = ("conf", "stages", "pipelines")


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="tapeout-scale-", dir=options.work) as name:
        figures = measured(Path(name), options)
    print(table(figures))
    if options.json:
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
        values = {**machine, "figures": [each.to_json() for each in figures]}
        options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fastvlm-0.5b", help="whose decoder; default fastvlm-0.5b")
    parser.add_argument("--fisher", action="store_true", help="measure gradients too")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="sequences; default 64")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="in each; default 256")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of calibrate; default 2")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written; default: the system's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args()
    if min(options.samples, options.tokens - 1, options.threads) < 1:
        parser.error("--samples and --threads: at least 1; --tokens: at least 2")
    return options


def measured(folder: Path, options: argparse.Namespace) -> list[Figure]:
    """Make the checkpoint and the project under folder, build once, and tell what each node took."""
    tapeout, checkpoint, root = Path(sys.executable).with_name("tapeout"), folder / "checkpoint", folder / "project"
    spend(
        [tapeout, "new-checkpoint", options.model, "--layout", "qwen2", "--seed", "1", "--out", checkpoint], REPOSITORY
    )
    project(root, options.threads)
    words = [
        tapeout,
        "build",
        "pipeline=scale",
        f"model={options.model}",
        f"model.path={checkpoint}",
        "model.shape=null",
    ]
    words += [f"device=[{DEVICE}]", "quantize=int4", "quantize.method=gptq", "quantize.group_size=32"]
    words += ["calibrate.draw=tokens", f"calibrate.samples={options.samples}", f"calibrate.tokens={options.tokens}"]
    words += [f"calibrate.fisher={str(options.fisher).lower()}", f"calibrate.threads={options.threads}"]
    words += ["tracking=none", "--json"]
    spent = spend(words, root, expected=(0, 1), PYTHONPATH=str(root))
    nodes = json.loads(spent.out)["nodes"]
    if failed := [node for node in nodes if node["status"] != "built"]:
        raise SystemExit("\n".join(f"{node['name']}: {node.get('error', node['status'])}" for node in failed))
    return figures(root, spent, {node["stage"]: node for node in nodes}, options)


def project(root: Path, threads: int) -> None:
    """This repository's code and configuration, and a pipeline of three stages of mobile's."""
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, root / name)
    mobile = yaml.safe_load((root / "conf/pipeline/mobile.yaml").read_text(encoding="utf-8"))
    stages: dict[str, Any] = {name: mobile["stages"][name] for name in STAGES}
    for stage in stages.values():  # what other stages would give is not needed
        stage["needs"] = {key: value for key, value in stage.get("needs", {}).items() if value in STAGES}
        stage["when"] = {key: value for key, value in stage.get("when", {}).items() if key in stage["needs"]}
    stages["calibrate"]["resources"]["cpus"] = threads
    text = yaml.safe_dump({"schemas": mobile["schemas"], "stages": stages}, sort_keys=False)
    (root / "conf/pipeline/scale.yaml").write_text(text, encoding="utf-8")
    under_git(root)


def figures(root: Path, spent: Spent, nodes: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[Figure]:
    seconds = sum(nodes[name]["seconds"] for name in STAGES[1:])
    how = f"{options.samples} sequences of {options.tokens} tokens, {'with' if options.fisher else 'no'} gradients"
    found = [
        Figure("calibrate and quantize", seconds, "s", how, SECONDS),
        Figure("  CPU", spent.cpu, "CPU s", "user and system, all processes, load too"),
        Figure("memory", spent.peak, "MiB", "peak resident of the largest process", MEMORY),
    ]
    for name in STAGES:
        memory = nodes[name].get("memory_mib") or "?"
        found.append(Figure(f"  {name}", nodes[name]["seconds"], "s", f"peak {memory} MiB"))
    store = size_mib(root / ".tapeout") + size_mib(root / ".dvc")
    return [*found, Figure("disk", store, "MiB", "the store: checkpoint, statistics, codes")]


if __name__ == "__main__":
    main()
