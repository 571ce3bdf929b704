"""Do the default gates see a damaged model, and let a sound one pass? Each seed draws other questions and damages.

python benchmarks/faults.py [--seeds N] [--first K] [--per-task N] [--json FILE] [--fresh]

A seed's sound files answer the default number of questions of each task, damaged ones --per-task of them. Even seeds
take the Pixel 8's files (ONNX Runtime), odd ones the iPhone 15 Pro's (Core ML). Results are kept in .tapeout/faults, so
that several runs share the work, and one that was stopped goes on.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from faults.damage import FAULTS, Damaged, Subject

from pipelines.compose import compose
from pipelines.project import find_project
from pipelines.typed import build
from pipelines.workspace import Workspace
from stages.artifacts import Baseline, Checkpoint, DeviceModel, Probe, QuantizedModel
from stages.baseline import baseline
from stages.evaluate import evaluate
from stages.evaluation.gates import check_gates
from stages.schema import SCHEMAS

DEVICES = ("pixel-8", "iphone-15-pro")
QUESTIONS = 1000  # added to a seed: not the build's questions
TARGET = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--per-task", type=int, default=40)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    project = find_project(Path.cwd())
    kept = project.root / ".tapeout/faults"
    if options.fresh:
        shutil.rmtree(kept, ignore_errors=True)
    command = [sys.executable, "-m", "pipelines.cli", "build", "tracking=none"]
    subprocess.run(command, cwd=project.root, check=True, stdout=subprocess.DEVNULL)
    bench = Bench(project.root, options.per_task)
    found = []
    for seed in range(options.first, options.first + options.seeds):
        for fault in FAULTS:
            found.append(bench.result(kept, fault, seed))
            print(said(found[-1]), flush=True)
    rows = table(found)
    print("\n".join(f"{name:<8} {text}" for name, text in rows.items()))
    if options.json:
        options.json.write_text(
            json.dumps({"results": found, "per_task": options.per_task}, indent=2), encoding="utf-8"
        )


class Bench:
    """The reference model as the default build of `root` has it, whole and damaged."""

    def __init__(self, root: Path, per_task: int):
        values, _ = compose(find_project(root), [f"device=[{','.join(DEVICES)}]"])
        self.per_task, self.nodes = per_task, root / "artifacts/build"
        config = {name: build(values[name], SCHEMAS[name]) for name in ("questions", "validate", "convert")}
        self.questions, self.gates = config["questions"], config["validate"]
        self.checkpoint = Checkpoint(self.nodes / "load")
        self.state = _state(root, values["validate"], self.nodes)
        devices = {name: build(values["device"][name], SCHEMAS["device"]) for name in DEVICES}
        self.subjects = {
            name: Subject(
                QuantizedModel(self.nodes / "quantize"),
                Probe(self.nodes / "probe"),
                config["convert"],
                device,
                DeviceModel(self.nodes / f"convert-{name}"),
            )
            for name, device in devices.items()
        }

    def result(self, kept: Path, fault: str, seed: int) -> dict[str, Any]:
        """Which gates fail, with their values; what was measured before is not measured again."""
        per_task = self.questions.per_task if fault == "none" else self.per_task
        path = kept / self.state / f"{fault}-{seed}-{per_task}.json"
        if not path.is_file():
            with tempfile.TemporaryDirectory(prefix="faults-") as folder:
                value = self._measured(Path(folder), fault, seed, per_task)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{random.random()}")
            partial.write_text(json.dumps(value, indent=2), encoding="utf-8")
            partial.replace(path)
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def _measured(self, folder: Path, fault: str, seed: int, per_task: int) -> dict[str, Any]:
        device = DEVICES[seed % len(DEVICES)]
        damaged = FAULTS[fault](self.subjects[device], random.Random(f"{fault}:{seed}"), folder / "damaged")
        asked = self._baseline(folder, seed, per_task)
        metrics = self._evaluated(folder, damaged, asked)
        failed = [gate for gate in check_gates(metrics, self.gates.gates, self.gates.predictions) if not gate["passed"]]
        names = ("metric", "task", "value", "bound")
        return {
            "fault": fault,
            "seed": seed,
            "device": device,
            "what": damaged.what,
            "failed": [{name: gate[name] for name in names} for gate in failed],
            "parity": metrics["parity"],
            "fidelity": metrics["fidelity"],
        }

    def _baseline(self, folder: Path, seed: int, per_task: int) -> Baseline:
        config = replace(self.questions, per_task=per_task, seed=QUESTIONS + seed)
        given = {"checkpoint": self.checkpoint, "config": config}
        return baseline(self.checkpoint, config, _workspace(folder / "baseline", given))

    def _evaluated(self, folder: Path, damaged: Damaged, asked: Baseline) -> dict[str, Any]:
        given = {
            "checkpoint": self.checkpoint,
            "model": damaged.model,
            "device_model": damaged.device_model,
            "baseline": asked,
            "config": self.gates,
        }
        work = _workspace(folder / "evaluate", given)
        return evaluate(self.checkpoint, damaged.model, damaged.device_model, self.gates, work, asked).metrics()


def said(result: dict[str, Any]) -> str:
    metrics = dict.fromkeys(gate["metric"] for gate in result["failed"])
    return f"{result['seed']:>3} {result['fault']:<8} {', '.join(metrics) or 'all gates pass'}  ({result['what']})"


def table(results: list[dict[str, Any]]) -> dict[str, str]:
    """A line a fault: how often it was seen, and by which metric how often; of none: how often it raised an alarm."""
    rows = {}
    for fault in FAULTS:
        own = [result for result in results if result["fault"] == fault]
        seen = sum(bool(result["failed"]) for result in own)
        metrics = Counter(metric for result in own for metric in {gate["metric"] for gate in result["failed"]})
        by = ", ".join(f"{metric} {count}" for metric, count in metrics.most_common())
        met = not seen if fault == "none" else seen >= TARGET * len(own)
        verb = "alarms" if fault == "none" else "seen"
        rows[fault] = f"{verb} {seen} of {len(own)}  {'met' if met else 'missed'}  {by}"
    return rows


def _state(root: Path, settings: Any, nodes: Path) -> str:
    """A digest of what results depend on: the gates, what was built, and the code that damages and evaluates."""
    parts = [json.dumps(settings, sort_keys=True, default=str)]
    parts += [(nodes / f"{name}.json").read_text() for name in ("quantize", *(f"convert-{name}" for name in DEVICES))]
    files = [*sorted((root / "stages/evaluation").glob("*.py")), root / "benchmarks/faults/damage.py"]
    parts += [path.read_text(encoding="utf-8") for path in files]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def _workspace(path: Path, given: dict[str, Any]) -> Workspace:
    (path / "out").mkdir(parents=True)
    return Workspace(path / "out", path / "scratch", given=given)


if __name__ == "__main__":
    main()
