"""A project with quick stages, to build for real: load, quantize, convert, validate, package for three devices."""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cli import main

PIPELINE = """
schemas: toystages.schema.SCHEMAS
stages:
  load: {run: toystages.load.load, config: model, sources: {path: ["*.txt"]}, libraries: [numpy]}
  quantize: {run: toystages.quantize.quantize, config: quantize, needs: {checkpoint: load}, per: device}
  convert:
    {run: toystages.convert.convert, needs: {model: quantize}, per: device, device: true, device_fields: [runtime]}
  validate:
    run: toystages.validate.validate
    config: validate
    needs: {model: convert}
    per: device
    device: true
    device_fields: [budget]
    gates: metrics.json
  package:
    run: toystages.package.package
    needs: {model: convert, validation: validate}
    per: device
    device: true
    bundle: true
"""

FILES = {
    "pyproject.toml": "[project]\nname = 'toy'\n",
    "conf/config.yaml": "defaults: [{pipeline: main}, {model: reference}, {device: [phone, tablet]}, {quantize: int4},"
    " {validate: default}, {executor: local}, {tracking: none}, _self_]\n",
    "conf/pipeline/main.yaml": PIPELINE,
    "conf/pipeline/pair.yaml": """
schemas: toystages.schema.SCHEMAS
stages:
  load: {run: toystages.load.load, config: model, sources: {path: ["*.txt"]}}
  quantize: {run: toystages.quantize.quantize, config: quantize, needs: {checkpoint: load}}
""",
    "conf/model/reference.yaml": "path: data/model\n",
    "conf/device/phone.yaml": "# @package device.phone\nname: phone\nruntime: a\nbudget: 1\noverrides: {}\n",
    "conf/device/tablet.yaml": "# @package device.tablet\nname: tablet\nruntime: a\nbudget: 1\noverrides: {}\n",
    "conf/device/watch.yaml": "# @package device.watch\nname: watch\nruntime: b\nbudget: 2\noverrides: {}\n",
    "conf/quantize/int4.yaml": "bits: 4\ngroup_size: 32\n",
    "conf/quantize/int8.yaml": "bits: 8\ngroup_size: 32\n",
    "conf/validate/default.yaml": "bound: 0.5\nnoise: 0.0\n",
    "conf/executor/local.yaml": "kind: local\njobs: 1\nmemory_mib: null\nretries: 1\n",
    "conf/tracking/none.yaml": "kind: none\nuri: ''\nexperiment: ''\n",
    "conf/tracking/mlflow.yaml": "kind: mlflow\nuri: sqlite:///mlflow.db\nexperiment: toy\n",
    "data/model/weights.txt": "0.25 0.5\n",
    "toystages/__init__.py": "",
    "toystages/schema.py": '''
"""Types of the toy's configuration."""
from dataclasses import dataclass
from typing import Any


@dataclass
class Model:
    path: str


@dataclass
class Quantize:
    bits: int
    group_size: int


@dataclass
class Device:
    name: str
    runtime: str
    budget: int
    overrides: dict[str, Any]


@dataclass
class Validate:
    bound: float
    noise: float


SCHEMAS = {"model": Model, "quantize": Quantize, "device": Device, "validate": Validate}
''',
    "toystages/folder.py": '''
"""The toy's only artifact type."""


class Folder:
    def __init__(self, path):
        self.path = path

    def text(self, name):
        """Return a file's text."""
        return (self.path / name).read_text()  # as it is
''',
    "toystages/load.py": """
from pathlib import Path


def load(config, work):
    work.log("loading")
    (work.out / "weights.txt").write_text(Path(config.path, "weights.txt").read_text().strip())
""",
    "toystages/quantize.py": """
from toystages.folder import Folder


def quantize(checkpoint: Folder, config, work):
    for step in range(3):
        work.progress(step + 1, 3, "rounds")
        work.metric("error", 1.0 / (step + 1), step)
    (work.out / "codes.txt").write_text(f"{checkpoint.text('weights.txt')} in {config.bits}/{config.group_size}")
""",
    "toystages/convert.py": """
from toystages.folder import Folder


def convert(model: Folder, device, work):
    (work.out / "graph").mkdir()
    (work.out / "graph" / "model.bin").write_text(f"{model.text('codes.txt')} for {device.runtime}")
""",
    "toystages/validate.py": """
import json

from toystages.folder import Folder


def validate(model: Folder, config, device, work):
    value = 0.9 - config.noise
    task = {"n": 10, "fp32": 0.99, "artifact": 0.98, "retention": 0.99, "retention_low": 0.97, "retention_high": 1.0}
    gate = {"metric": "retention", "task": "ocr", "value": value, "bound": config.bound, "kind": "min"}
    gates = [{**gate, "passed": value >= config.bound}]
    metrics = {"tasks": {"ocr": task}, "parity": {"top1": 0.999}, "size_bytes": 3 * 2**20, "gates": gates}
    (work.out / "metrics.json").write_text(json.dumps(metrics))
""",
    "toystages/package.py": """
import hashlib
import json

from toystages.folder import Folder


def package(model: Folder, validation: Folder, device, work):
    data = model.text("graph/model.bin").encode()
    (work.out / "model.bin").write_bytes(data)
    files = [{"path": "model.bin", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}]
    (work.out / "manifest.json").write_text(json.dumps({"device": device.name, "files": files}))
""",
}

NODES = ["load", "quantize", "convert", "validate", "package-phone", "package-tablet"]


@dataclass
class Result:
    """What a command said."""

    status: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def nodes(self) -> dict[str, str]:
        """The status of each node."""
        return {node["name"]: node["status"] for node in self.summary["nodes"]}

    @property
    def why(self) -> dict[str, str]:
        """Why each node ran."""
        return {node["name"]: node["why"] for node in self.summary["nodes"]}


class Toy:
    """The project in `root`."""

    def __init__(self, root: Path):
        self.root = root

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def run(self, *words: str, env: dict[str, str] | None = None) -> Result:
        """Run `tapeout`: in this process, which saves imports, unless it needs another environment."""
        if env is not None:
            return self.call(sys.executable, "-m", "pipelines.cli", *words, env=env)
        out, err, paths = io.StringIO(), io.StringIO(), list(sys.path)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with contextlib.chdir(self.root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(words))
        sys.path[:] = paths
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("toystages", "mystages")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return Result(status, out.getvalue(), err.getvalue())

    def build(self, *words: str, env: dict[str, str] | None = None) -> Result:
        """Run `tapeout build --json`."""
        return self.run("build", "--json", *words, env=env)

    def call(self, *words: str, env: dict[str, str] | None = None) -> Result:
        """Run any command in the project; fails the test where it shows a traceback."""
        done = subprocess.run(words, cwd=self.root, env=environment(env), capture_output=True, text=True, timeout=300)
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def files(self) -> dict[str, bytes]:
        """Every file under artifacts/."""
        base = self.root / "artifacts"
        return {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment, in which `tapeout`, `dvc` and the repository's packages are found."""
    here = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1", **(extra or {})}


def make_toy(root: Path) -> Toy:
    """Write the toy project into `root`."""
    toy = Toy(root)
    for name, text in FILES.items():
        toy.write(name, text)
    return toy


def add_dvc(toy: Toy) -> None:
    """Make the project a git and DVC repository, as this one is set up."""
    toy.write(".gitignore", "/.tapeout\n__pycache__\n/mlflow.db\n/mlruns\n")
    toy.write("artifacts/.gitignore", "/*\n!/.gitignore\n")
    toy.write(".dvc/config", (Path(__file__).parents[2] / ".dvc/config").read_text())
    toy.write(".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    toy.write(".dvcignore", ".tapeout\n")
    commit(toy)


def commit(toy: Toy) -> None:
    """Commit everything."""
    who = (["config", "user.name", "toy"], ["config", "user.email", "toy@example.org"])
    for words in (["init", "-q"], *who, ["add", "-A"], ["commit", "-qm", "toy"]):
        done = toy.call("git", *words)
        assert done.status == 0, done.err
