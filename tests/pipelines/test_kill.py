"""SIGKILL of a build at any moment: the next build makes the same, and nothing is left behind."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines.toy import Toy, add_dvc, environment, make_toy

WORDS = [sys.executable, "-m", "pipelines.cli", "build"]
WAYS = ("the group", "the build alone", "the rebuild too")  # what is killed


def start(toy: Toy) -> subprocess.Popen[str]:
    """Start a build in a process group of its own."""
    return subprocess.Popen(
        WORDS, cwd=toy.root, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def started(toy: Toy) -> subprocess.Popen[str]:
    """Start a build; return when its first stage has been given to a worker."""
    process = start(toy)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("load")
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, float]:
    """What a build leaves that nobody kills, and how long it takes after its first stage has begun."""
    toy = make_toy(tmp_path_factory.mktemp("whole") / "toy")
    add_dvc(toy)
    process = started(toy)
    began = time.monotonic()
    process.communicate(timeout=120)
    assert process.returncode == 0
    return toy, time.monotonic() - began


def kill_and_build(expected: Toy, seconds: float, root: Path, seed: int, share: float) -> Toy:
    """Kill a cold build after `share` of its time, build again, and compare all that is there."""
    toy, way = make_toy(root), WAYS[seed % len(WAYS)]
    add_dvc(toy)
    process = started(toy)
    time.sleep(share * seconds)
    if way == "the build alone":
        os.kill(process.pid, signal.SIGKILL)  # the kernel ends the workers, whose output it waits for below
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    if way == "the rebuild too":
        again = start(toy)
        time.sleep(random.Random(seed).uniform(0.2, 1.0) * seconds)
        os.killpg(again.pid, signal.SIGKILL)
        again.communicate(timeout=60)
    result = toy.build()
    assert result.status == 0, result.err
    assert contents(toy) == contents(expected)
    assert kept(toy) == kept(expected)
    assert toy.run("verify").out.strip() == "nothing is damaged"
    assert set(toy.build().nodes.values()) == {"cached"}
    return toy


def contents(toy: Toy) -> dict[str, bytes]:
    """The bytes of all that DVC and others see: artifacts, objects, and the three files of DVC's."""
    objects = toy.root / ".dvc/cache/files/md5"
    stored = {str(path.relative_to(objects)): path.read_bytes() for path in objects.rglob("*") if path.is_file()}
    lasting = {name: (toy.root / name).read_bytes() for name in ("dvc.yaml", "dvc.lock", "params.yaml")}
    return {**stored, **lasting, **toy.files()}


def kept(toy: Toy) -> set[str]:
    """The names of all that a build leaves: objects, records, logs, but no scratch and nothing half written."""
    found = [path for path in toy.root.rglob("*") if path.is_file() and ".git" not in path.parts]
    names = {path.relative_to(toy.root).as_posix() for path in found}
    passing = re.compile(r".*__pycache__.*|\.dvc/tmp/.*|\.tapeout/builds/\d+\.json")  # the last: one a build that ended
    return {name for name in names if not passing.fullmatch(name)}


def dvc_agrees(toy: Toy) -> bool:
    return toy.call("dvc", "status").out.strip() == "Data and pipelines are up to date."


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_build_is_made_good_by_the_next(seed: int, whole: tuple[Toy, float], tmp_path: Path) -> None:
    share = random.Random(seed).uniform(seed / 3, (seed + 1) / 3)
    toy = kill_and_build(*whole, tmp_path / "toy", seed, share)
    assert seed or dvc_agrees(toy)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_sixty_killed_builds_are_made_good(seed: int, whole: tuple[Toy, float], tmp_path: Path) -> None:
    share = random.Random(100 + seed).uniform(seed / 60, (seed + 1) / 60)
    toy = kill_and_build(*whole, tmp_path / "toy", seed * 7, share)
    assert dvc_agrees(toy)


def test_what_was_half_written_is_swept(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    add_dvc(toy)
    assert toy.build("pipeline=pair").status == 0
    before = kept(toy)
    halves = [".dvc.lock", "artifacts/build/.load.json", ".tapeout/.last.json", ".dvc/cache/files/md5/ab/.cd"]
    halves += [".params.yaml", ".tapeout/.digests.json", ".tapeout/configurations/.ab.json", ".tapeout/outbox/.1.json"]
    for name in halves:
        toy.write(f"{name}.{'0' * 32}", "half")
    toy.write(".tapeout/staging/x/y", "half")
    toy.write(".tapeout/lock", "A build runs, or was killed.\n")
    assert toy.build("pipeline=pair").status == 0
    assert kept(toy) == before
