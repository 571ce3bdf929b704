"""Two commands in one checkout at once: one waits, both end well, and what is left is what either would leave alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.toy import Toy, add_dvc, environment, make_toy

CASES = {
    "the same build twice": (["build"], ["build"]),
    "builds of two configurations": (["build", "quantize=int4"], ["build", "quantize=int8"]),
    "a build and a check": (["build"], ["verify"]),
    "a build and a plan": (["build"], ["plan"]),
    "a build and an explanation": (["build"], ["explain", "load"]),
}
BUILDS = ["the same build twice", "builds of two configurations"]
ROUNDS = [(case, number) for case in CASES for number in range(10 if case in BUILDS else 2)]
OUTSIDE = ["quantize=int4", "quantize=int8"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What each configuration leaves when nothing else runs."""
    toy = make_toy(tmp_path_factory.mktemp("alone") / "toy")
    add_dvc(toy)
    found = {}
    for override in reversed(OUTSIDE):  # the last is the default
        assert toy.build(override).status == 0
        found[override] = toy.files()
    return found


def at_once(toy: Toy, commands: tuple[list[str], ...]) -> None:
    """Run commands at the same time; all must exit 0, without a traceback."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *words],
            cwd=toy.root,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in commands
    ]
    for process, words in zip(running, commands, strict=True):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, (words, err)
        assert "Traceback" not in err


def both_end_well(case: str, toy: Toy, alone: dict[str, dict[str, bytes]]) -> None:
    add_dvc(toy)
    at_once(toy, CASES[case])
    assert toy.files() in alone.values()
    assert toy.run("verify").out.strip() == "nothing is damaged"
    for override, files in alone.items():
        result = toy.build(override)
        assert result.status == 0
        if override == OUTSIDE[0] or case == BUILDS[1]:
            assert set(result.nodes.values()) == {"cached"}
        assert toy.files() == files


@pytest.mark.parametrize("case", BUILDS)
def test_two_at_once(case: str, toy: Toy, alone: dict[str, dict[str, bytes]]) -> None:
    both_end_well(case, toy, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "number"), ROUNDS)
def test_two_at_once_again_and_again(case: str, number: int, toy: Toy, alone: dict[str, dict[str, bytes]]) -> None:
    both_end_well(case, toy, alone)


def test_looking_never_disturbs_a_build(toy: Toy, alone: dict[str, dict[str, bytes]]) -> None:
    """`plan` and `explain` take no lock: they see what lies there while a build replaces it."""
    add_dvc(toy)
    at_once(toy, (["build"], ["plan"], ["explain", "quantize"], ["plan", "quantize=int8"]))
    shutil.rmtree(toy.root / "artifacts/build")
    at_once(toy, (["build"], ["plan"], ["explain", "package-phone"], ["verify"]))
    assert toy.files() == alone["quantize=int4"]


def test_two_projects_may_share_one_cache(tmp_path: Path, alone: dict[str, dict[str, bytes]]) -> None:
    """Each has its own lock; objects come whole and by content, so that both may write the same one."""
    toys = [make_toy(tmp_path / name) for name in ("a", "b")]
    for toy in toys:
        add_dvc(toy)
        toy.write(".dvc/config", "[cache]\n    dir = ../../cache\n")
    running = [
        subprocess.Popen([sys.executable, "-m", "pipelines.cli", "build"], cwd=toy.root, env=environment())
        for toy in toys
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    for toy in toys:
        assert toy.files() == alone["quantize=int4"]
        assert toy.run("verify").out.strip() == "nothing is damaged"
    assert not list((tmp_path / "cache").rglob(".*"))
