"""The main job, as a user runs it: the shipped reference model through every stage, in clones that differ in what must
not matter."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUNDLES = {"iphone-15-pro": "coreml", "pixel-8": "onnxruntime"}


@dataclass
class Clone:
    """A copy of this tree as git has it, with a home and an environment of its own."""

    folder: Path
    environment: dict[str, str]

    def tapeout(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "pipelines.cli", *words)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def files(self) -> dict[str, str]:
        """{path: sha256} of both bundles."""
        paths = [
            path for device in BUNDLES for path in (self.folder / "artifacts" / device).rglob("*") if path.is_file()
        ]
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(paths)
        }


def clone(folder: Path, name: str, threads: str, seed: str) -> Clone:
    home = folder / f"home-of-{name}"
    tree = home / "some" / name
    tree.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for path in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / path).is_file():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes((ROOT / path).read_bytes())
    binaries = str(Path(sys.executable).parent)
    environment = {
        "PATH": os.pathsep.join([binaries, os.environ["PATH"]]),
        "HOME": str(home),
        "USER": name,
        "OMP_NUM_THREADS": threads,
        "PYTHONHASHSEED": seed,
        "GIT_AUTHOR_NAME": name,
    }
    subprocess.run(["git", "init", "-q"], cwd=tree, env=environment, check=True)
    return Clone(tree, environment)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone in which the default build has run, with fewer questions."""
    made = clone(tmp_path_factory.mktemp("first"), "ada", threads="1", seed="1")
    done = made.tapeout("build", "questions.per_task=20", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    yield made


def test_each_bundle_passed_its_gates_and_says_what_it_is(built: Clone) -> None:
    for device, runtime in BUNDLES.items():
        folder = built.folder / "artifacts" / device
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["runtime"] == runtime
        assert manifest["device"]["name"] == device
        assert {gate["passed"] for gate in manifest["validation"]["gates"]} == {True}
        assert {task["n"] for task in manifest["validation"]["tasks"].values()} == {20}
        listed = {entry["path"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]}
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "manifest.json":
                content = path.read_bytes()
                key = path.relative_to(folder).as_posix()
                assert listed.pop(key) == (len(content), hashlib.sha256(content).hexdigest())
        assert not listed


def test_a_second_build_runs_nothing(built: Clone) -> None:
    before = built.files()
    done = built.tapeout("build", "questions.per_task=20", "--json")
    assert done.returncode == 0, done.stderr
    assert {node["status"] for node in json.loads(done.stdout)["nodes"]} == {"cached"}
    assert built.files() == before


def test_the_devices_give_the_same_answers(built: Clone) -> None:
    done = built.run(sys.executable, str(ROOT / "benchmarks/agreement.py"), "--json", "agreement.json")
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads((built.folder / "agreement.json").read_text())
    assert figures["questions"] == 180
    assert figures["same"] >= 0.98 * figures["questions"]


def test_other_folders_homes_threads_and_seeds_give_the_same_bytes(built: Clone, tmp_path: Path) -> None:
    other = clone(tmp_path, "grace", threads="2", seed="77")
    done = other.tapeout("build", "questions.per_task=20", "tracking=none")
    assert done.returncode == 0, done.stderr
    assert other.files() == built.files()
    for made in (built, other):
        words = [word.encode() for word in (str(made.folder), made.environment["HOME"], made.environment["USER"])]
        for path in made.files():
            content = (made.folder / path).read_bytes()
            assert not [word for word in words if word in content], f"{path} names who built it"


def test_dvc_agrees(built: Clone) -> None:
    status = built.run(sys.executable, "-m", "dvc", "status")
    assert "up to date" in status.stdout, status.stdout + status.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["quantize=palette4", "device=[pixel-8]"], ["pixel-8", "cannot hold", "palette"]),
        (["validate.gates=[{metric: size_bytes, task: null, min: null, max: 1000}]"], ["size_bytes", "1000"]),
    ],
)
def test_what_cannot_be_met_is_said(built: Clone, words: list[str], parts: list[str]) -> None:
    done = built.tapeout("build", "questions.per_task=20", "tracking=none", *words)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stdout + done.stderr


@pytest.mark.slow
def test_the_default_build_passes_with_all_its_questions(tmp_path: Path) -> None:
    made = clone(tmp_path, "full", threads="2", seed="0")
    done = made.tapeout("build", "--json")
    assert done.returncode == 0, done.stderr
    for gate in json.loads(done.stdout)["gates"]:
        assert gate["passed"], gate
