"""SIGKILL of a build and its workers, at any moment: the next build makes the same, and nothing is left behind."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines.toy import Toy, add_dvc, environment, make_toy

WORDS = [sys.executable, "-m", "pipelines.cli", "build", "pipeline=pair"]
LASTING = ("dvc.yaml", "dvc.lock")


def start(toy: Toy) -> subprocess.Popen[str]:
    """Start a build in a process group of its own; return when its first stage has been given to a worker."""
    process = subprocess.Popen(
        WORDS, cwd=toy.root, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("load")
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, float]:
    """What a build leaves that nobody kills, and how long it takes after its first stage has begun."""
    toy = make_toy(tmp_path_factory.mktemp("whole") / "toy")
    add_dvc(toy)
    process = start(toy)
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 0
    return toy, time.monotonic() - began


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_build_is_made_good_by_the_next(seed: int, whole: tuple[Toy, float], tmp_path: Path) -> None:
    expected, seconds = whole
    toy = make_toy(tmp_path / "toy")
    add_dvc(toy)
    process = start(toy)
    time.sleep(random.Random(seed).uniform(seed / 4, (seed + 1) / 4) * seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    result = toy.build("pipeline=pair")
    assert result.status == 0, result.err
    assert toy.files() == expected.files()
    for name in LASTING:
        assert (toy.root / name).read_bytes() == (expected.root / name).read_bytes()
    assert kept(toy) == kept(expected)
    assert toy.run("verify").out.strip() == "nothing is damaged"
    assert set(toy.build("pipeline=pair").nodes.values()) == {"cached"}


def kept(toy: Toy) -> set[str]:
    """The names of all that a build leaves: objects, records, logs, but no scratch and nothing half written."""
    found = [path for path in toy.root.rglob("*") if path.is_file() and ".git" not in path.parts]
    names = {path.relative_to(toy.root).as_posix() for path in found}
    return {name for name in names if "__pycache__" not in name}


def test_what_was_half_written_is_swept(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    add_dvc(toy)
    assert toy.build("pipeline=pair").status == 0
    before = kept(toy)
    halves = [".dvc.lock", "artifacts/build/.load.json", ".tapeout/.last.json", ".dvc/cache/files/md5/ab/.cd"]
    for name in halves:
        toy.write(f"{name}.{'0' * 32}", "half")
    toy.write(".tapeout/digests.json.123", "half")
    toy.write(".tapeout/staging/x/y", "half")
    toy.write(".tapeout/lock", "A build runs, or was killed.\n")
    assert toy.build("pipeline=pair").status == 0
    assert kept(toy) == before
