"""The self-test of a new version: a real model of random weights, run in a process of its own."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import StageError, UpdateError
from pipelines.project import Project
from stages.release.client import self_test as module
from stages.release.client.client import Client
from stages.release.client.self_test import self_test
from stages.release.history.following import start
from tests.stages.release.runnable import asks, write_runnable
from tests.stages.release.shelf import Shelf


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runnable(tmp_path_factory.mktemp("real"))


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.mark.slow
def test_right_answers_pass(bundle: Path) -> None:
    assert self_test(bundle) == ""


@pytest.mark.slow
def test_a_wrong_answer_fails(changed: Path) -> None:
    asks(changed, "something else")
    with pytest.raises(StageError, match=r"asked 'what\?' it answers .*; 'something else' was expected"):
        self_test(changed)


@pytest.mark.slow
def test_without_questions_the_files_are_opened(changed: Path) -> None:
    asks(changed)
    assert "no questions" in self_test(changed)
    (changed / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(StageError, match=r"cannot load decoder\.onnx"):
        self_test(changed)


def test_a_test_that_takes_too_long(bundle: Path) -> None:
    with pytest.raises(StageError, match=r"no answer in 0\.01 s"):
        self_test(bundle, seconds=0.01)


ENDS = {"segfault": (StageError, "signal 11"), "exit": (StageError, "exit status 7"), "kill": (UpdateError, "signal 9")}


@pytest.mark.parametrize("way", ENDS)
def test_a_process_that_ends(way: str, changed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that crashes the interpreter fails; one that was killed from outside was not tested."""
    code = {"segfault": "os.kill(os.getpid(), 11)", "exit": "os._exit(7)", "kill": "os.kill(os.getpid(), 9)"}[way]
    (tmp_path / "sitecustomize.py").write_text(f"import os, sys\nif 'manifest' not in sys.argv: {code}\n")
    monkeypatch.setattr(module, "environment", lambda: {"PYTHONPATH": str(tmp_path)})
    error, said = ENDS[way]
    with pytest.raises(error, match=said):
        self_test(changed)


def test_the_current_folder_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"FileNotFoundError.*manifest\.json"):
        self_test(tmp_path)


def test_nor_does_the_folder_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that follows the history runs there; here it ends before it has come to MLflow."""
    said = tmp_path / "said"
    code = f"import pathlib, os, sys\npathlib.Path({str(said)!r}).write_text(str(sys.flags.safe_path))\nos._exit(0)\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert start(Project(tmp_path), "unused", 0)
    end = time.monotonic() + 10
    while not (said.exists() and said.read_text()) and time.monotonic() < end:
        time.sleep(0.01)
    assert said.read_text() == "True"


@pytest.mark.slow
def test_another_processor_cannot_tell(changed: Path) -> None:
    model = json.loads((changed / "model.json").read_text()) | {"prepacked_for": "riscv64"}
    (changed / "model.json").write_text(json.dumps(model))  # from there it comes into the manifest
    asks(changed, "something else")
    assert "not tested here: prepacked weights fit one kind of processor" in self_test(changed)


def test_an_update_is_tested_by_default(bundle: Path, changed: Path, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "repository")
    asks(changed, "something else", version="1.1.0")
    shelf.offer(shelf.add(bundle))

    def client() -> Client:
        return Client(tmp_path / "device", str(shelf.folder), "pixel-8", "stable", shelf.first_root())

    first: Any = client().update()
    assert (first.status, first.notes) == ("new", ())
    shelf.offer(shelf.add(changed))
    with pytest.raises(UpdateError, match=r"demo 1\.1\.0 for pixel-8: its self-test failed, .* was expected"):
        client().update()
    assert client().update().status == "held" and client().status()["current"]["version"] == "1.0.0"
