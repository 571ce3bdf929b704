"""A build that nobody made: a project's folder as `tapeout build` leaves it, in the schema of its stages, for the page.

Two evaluations (Core ML's and ONNX Runtime's) are shared by many devices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.digests import Digests, hash_bytes
from pipelines.history import Build, History
from pipelines.ledger import Ledger, Record
from pipelines.project import Project
from pipelines.sealed import write_sealed
from pipelines.sharing import Sharing
from pipelines.store import Store
from pipelines.tree import Tree
from tests.stages.reported_contents import Contents, as_json, risks
from tests.stages.reported_devices import IPHONES, Made, four


def make_build(root: Path, devices: list[Made] | None = None, hostile: bool = False, blocked: bool = True) -> Project:
    """Lay a build out in `root`; return its project. blocked: whether some gates fail."""
    (root / "conf").mkdir(parents=True, exist_ok=True)
    (root / "pyproject.toml").write_text("[project]\nname = 'made-up'\n")
    project = Project(root)
    maker = _Maker(project, devices or four(), hostile, blocked)
    maker.make()
    return project


class _Maker:
    def __init__(self, project: Project, devices: list[Made], hostile: bool, blocked: bool) -> None:
        self.project, self.devices = project, devices
        self.of = Contents(hostile, blocked)
        self.nodes: list[dict[str, Any]] = []
        self.ledger = Ledger(project.state / "ledger")
        self.store = Store(project.cache, project.state / "staging", Digests(project.state / "digests.json"), False)
        self.digests: dict[str, str] = {}
        self.metrics: dict[str, Any] = {}
        self.gates: list[dict[str, Any]] = []
        self.bundles: dict[str, str] = {}
        self.older: dict[str, str] = {}  # {node: its key in the build before}

    def make(self) -> None:
        groups = {
            "coreml": [each for each in self.devices if each in IPHONES],
            "onnxruntime": [each for each in self.devices if each not in IPHONES],
        }
        every = [name for name, *_ in self.devices]
        self.node("load", "load", [], {}, 5.3, {"model.safetensors": b"\0" * 3_469_640, "config.json": b"{}"})
        self.node("calibrate", "calibrate", every, {"checkpoint": "load"}, 14.1, {"sensitivity.json": b"{}"})
        self.node("baseline", "baseline", [], {"checkpoint": "load"}, 31.9, {"answers.jsonl": b""}, "cached")
        self.node(
            "allocate",
            "allocate",
            every,
            {"checkpoint": "load", "calibration": "calibrate"},
            41.2,
            {"frontier.json": as_json(self.of.frontier())},
        )
        formats = self.of.formats()
        self.node(
            "quantize",
            "quantize",
            every,
            {"checkpoint": "load", "allocation": "allocate"},
            6.8,
            {"formats.json": as_json(formats)},
        )
        self.node("probe", "probe", every, {"model": "quantize"}, 2.0, {"probe.json": b"{}"}, "cached")
        for runtime, group in groups.items():
            if not group:
                continue
            names, first = [name for name, *_ in group], group[0][0]
            found = risks() if runtime == "coreml" else []
            model = as_json({"runtime": runtime, "risks": found})
            self.node(
                f"convert-{first}",
                "convert",
                names,
                {"model": "quantize", "probe": "probe"},
                3.4,
                {"model.json": model},
            )
            evaluated = self.of.evaluated(runtime)
            needs = {"device_model": f"convert-{first}", "baseline": "baseline", "model": "quantize", "probe": "probe"}
            files = {
                "metrics.json": as_json(evaluated),
                "layers.json": as_json(self.of.layers(formats)),
                "answers.jsonl": self.of.answers(),
                **self.of.flips(runtime),
            }
            self.node(f"evaluate-{first}", "evaluate", names, needs, 18.7, files)
            for device in group:
                self.device(device, runtime, evaluated, first, len(found))
        summary = {
            "nodes": self.nodes,
            "gates": self.gates,
            "bundles": self.bundles,
            "metrics": self.metrics,
            "measurements": {},
            "seconds": 88.6,
            "unrecorded": "",
            "shared": asdict(Sharing(len(every), 9 * len(every), 9 * len(every) - len(self.nodes))),
            "report": "stages.reporting.page.page",
            "devices": {name: self.of.profile(device) for device in self.devices for name in device[:1]},
            "passed": not any(not gate["passed"] for gate in self.gates),
        }
        write_sealed(self.project.state / "last.json", json.loads(json.dumps(summary)))
        history = History(self.project.state / "builds")
        keys = {node["name"]: node["key"] for node in self.nodes}
        made = tuple(node["name"] for node in self.nodes if node["status"] == "built")
        shared: dict[str, Any] = {
            "devices": {node["name"]: tuple(node["devices"]) for node in self.nodes if node["devices"]},
            "stages": {
                "evaluate": {"answers": "answers.jsonl"},
                "validate": {"config": "validate", "gates": "metrics.json"},
            },
        }
        older = {**keys, **self.older}
        history.write(Build(1, 1795360000, "release-1", ("quantize.bits=8",), True, older, tuple(keys), **shared))
        overrides = ("device=all", self.of.text("quantize.bits=4", 3))
        history.write(Build(2, 1795364400, None, overrides, summary["passed"], keys, made, **shared))

    def node(
        self,
        name: str,
        stage: str,
        devices: list[str],
        needs: Mapping[str, str],
        seconds: float,
        files: Mapping[str, bytes],
        status: str = "built",
        folder: str | None = None,
        device: Mapping[str, Any] | None = None,
    ) -> None:
        path = self.project.root / (folder or f"artifacts/build/{name}")
        for file, data in files.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(data)
        own = devices[0] if len(devices) < len(self.devices) and devices else None
        entry = {
            "name": name,
            "stage": stage,
            "device": own,
            "devices": devices,
            "status": status,
            "seconds": seconds if status == "built" else 0.0,
            "key": None,
            "digest": None,
            "size": 0,
            "why": "",
            "error": "",
            "memory_mib": round(400 + 20 * seconds),
            "summary": "",
            "figures": [],
            "needs": dict(needs),
        }
        self.nodes.append(entry)
        if status == "skipped":
            entry["why"] = f"a gate of {next(iter(needs.values()))} failed"
            return
        tree = Tree(
            {
                each.relative_to(path).as_posix(): hash_bytes(each.read_bytes())
                for each in sorted(path.rglob("*"))
                if each.is_file()
            }
        )
        libraries = {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.3.5", "safetensors": "0.8.0"}
        if stage in ("convert", "evaluate"):
            libraries |= {"coremltools": "9.0", "onnxruntime": "1.30.1", "tokenizers": "0.23.3"}
        ingredients = {
            "run": stage,
            "config": {"bits": 4},
            "device": device,
            "libraries": libraries,
            "inputs": {key: self.digests[need] for key, need in needs.items()},
        }
        record = Record(ingredients, tree)
        self.ledger.add(record)
        if stage in ("quantize", "evaluate", "validate"):
            self.remember(name, ingredients, path)
        self.digests[name] = tree.digest
        entry |= {"key": record.key, "digest": tree.digest, "size": tree.size}
        entry["why"] = (
            "unchanged"
            if status == "cached"
            else "not built before"
            if stage == "load"
            else "quantize.bits is 4, was 8"
        )
        (self.project.artifacts / "build").mkdir(parents=True, exist_ok=True)
        (self.project.artifacts / "build" / f"{name}.json").write_bytes(record.data)

    def remember(self, name: str, ingredients: Mapping[str, Any], path: Path) -> None:
        """Keep what the build before had of a node: the same files, but for other scores."""
        files = {each.name: each.read_bytes() for each in path.glob("*.json*")}
        if "metrics.json" in files:
            metrics = json.loads(files["metrics.json"])
            metrics["overall"]["artifact"], metrics["overall"]["flips"] = 0.9661, 0.004
            if "predicted" in metrics:
                metrics["size_bytes"] = 2_411_724
                metrics["predicted"]["tokens_per_s"]["value"] *= 0.71
            for gate in metrics.get("gates", ()):
                gate["passed"] = True
            files["metrics.json"] = as_json(metrics)
        if "answers.jsonl" in files:
            files["answers.jsonl"] = files["answers.jsonl"].replace(
                b'"answer": "dog", "score": 0.0', b'"answer": "cat", "score": 1.0'
            )
        files = {file: data + b" " * (file == "formats.json") for file, data in files.items()}
        tree = Tree({file: self.store.put_bytes(data) for file, data in sorted(files.items())})
        record = Record({**ingredients, "config": {"bits": 8}}, tree)
        self.ledger.add(record)
        self.older[name] = record.key

    def device(self, device: Made, runtime: str, evaluated: Mapping[str, Any], shared: str, found: int) -> None:
        name, _, _, speed = device
        profile = self.of.profile(device)
        size = 1_478_953 if runtime == "onnxruntime" else 1_602_744
        metrics = {**evaluated, "size_bytes": size, "risks": found, **self.of.predicted(speed)}
        metrics["gates"] = list(self.of.checked(metrics, profile["budgets"], evaluated))
        self.metrics[name] = metrics
        self.gates += [{"device": name, **gate} for gate in metrics["gates"]]
        needs = {"evaluation": f"evaluate-{shared}"}
        self.node(
            f"validate-{name}",
            "validate",
            [name],
            needs,
            0.4,
            {"metrics.json": as_json(metrics)},
            device={key: profile[key] for key in ("budgets", "hardware", "thermal")},
        )
        passed = all(gate["passed"] for gate in metrics["gates"])
        manifest = as_json({"device": {"name": name}, "risks": risks() if runtime == "coreml" else []})
        needs = {"device_model": f"convert-{shared}", "validation": f"validate-{name}", "model": "quantize"}
        self.node(
            f"package-{name}",
            "package",
            [name],
            needs,
            0.9,
            {"manifest.json": manifest},
            "built" if passed else "skipped",
            f"artifacts/{name}",
            profile,
        )
        if passed:
            self.bundles[name] = f"artifacts/{name}"
