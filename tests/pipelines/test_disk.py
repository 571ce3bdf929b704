"""Disks that fill up, folders that cannot be written, inputs that vanish: one clear message, and the store intact."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.toy import Result, Toy, add_dvc, make_toy

PAGE = 4096  # what each file takes on a tmpfs, at least
PLACES = {".dvc/cache": 24, ".tapeout/ledger": 6, "": 45}  # and the pages that a build takes there


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is refused here: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted(target: Path, *words: str) -> Iterator[None]:
    """Mount something at `target`, as long as it is needed."""
    target.mkdir(parents=True, exist_ok=True)
    mount(*words, str(target))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Let nobody write in a folder: by its mode, or, for root whom modes do not stop, by a flag."""
    if os.geteuid():
        folder.chmod(0o555)
    elif subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode:
        pytest.skip("root writes everywhere, and this file system has no flag against it")
    try:
        yield
    finally:
        if os.geteuid():
            folder.chmod(0o755)
        else:
            subprocess.run(["chattr", "-i", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = make_toy(tmp_path_factory.mktemp("whole") / "toy")
    add_dvc(toy)
    assert toy.build().status == 0
    return toy


def recovers(toy: Toy, whole: Toy, missing: str = "nothing") -> None:
    """What is kept is intact, and the next build makes what an undisturbed one does."""
    for line in toy.run("verify").out.splitlines():
        assert line == "nothing is damaged" or (line.startswith(missing) and ": missing; 'tapeout build'" in line)
    assert toy.build().status == 0
    assert toy.files() == whole.files()
    for name in ("dvc.yaml", "dvc.lock", "params.yaml"):
        assert (toy.root / name).read_bytes() == (whole.root / name).read_bytes()
    assert toy.run("verify").out.strip() == "nothing is damaged"


def says(result: Result, *words: str) -> None:
    """A failure: exit status 1, and every word in what is said. (A traceback in this process fails the test anyway.)"""
    assert result.status == 1, result.err
    assert "Traceback" not in result.err
    assert result.out == "" or result.summary["passed"] is False
    for word in words:
        assert word in result.err


def fills(place: str, pages: int, root: Path, whole: Toy) -> bool:
    """Build where `place` has room for a few pages more; say whether that was too few."""
    with mounted(root, "-t", "tmpfs", "tapeout-test"):
        toy = make_toy(root / "toy")
        add_dvc(toy)
        with contextlib.ExitStack() as stack:
            disk = root if place == "" else toy.root / place
            if place:
                stack.enter_context(mounted(disk, "-t", "tmpfs", "-o", f"size={pages * PAGE}", "tapeout-test"))
            else:
                used = os.statvfs(root)
                taken = (used.f_blocks - used.f_bfree) * used.f_frsize
                mount("-o", f"remount,size={taken + pages * PAGE}", str(disk))
            result = toy.build()
            mount("-o", "remount,size=64m", str(disk))
            if result.status:
                says(result, "No space left on device", "free some disk space", str(disk))
            recovers(toy, whole)
            return bool(result.status)


@pytest.mark.parametrize("place", PLACES)
def test_a_disk_that_fills_up(place: str, tmp_path: Path, whole: Toy) -> None:
    assert fills(place, PLACES[place] // 2, tmp_path / "disk", whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_disk_that_fills_up_anywhere(seed: int, tmp_path: Path, whole: Toy) -> None:
    chance = random.Random(seed)
    place = chance.choice(list(PLACES))
    fills(place, chance.randint(1, PLACES[place] + 2), tmp_path / "disk", whole)


def test_a_log_that_has_no_room(toy: Toy) -> None:
    toy.edit("toystages/load.py", '"loading"', '"x" * 10000')
    with mounted(toy.root / ".tapeout/logs", "-t", "tmpfs", "-o", f"size={PAGE}", "tapeout-test"):
        says(toy.build(), "load failed: OSError: No space left on device: ", ".tapeout", "free some disk space")
    assert toy.build().status == 0


CLOSED = ["artifacts", "artifacts/build", ".dvc/cache", ".tapeout", ".tapeout/ledger", "."]


@pytest.mark.parametrize("place", CLOSED)
@pytest.mark.parametrize("again", [False, True], ids=["cold", "rebuild"])
def test_a_folder_that_cannot_be_written(place: str, again: bool, tmp_path: Path, whole: Toy) -> None:
    toy = make_toy(tmp_path / "toy")
    add_dvc(toy)
    if again:
        assert toy.build("quantize=int8").status == 0
    (toy.root / place).mkdir(parents=True, exist_ok=True)
    with unwritable(toy.root / place):
        result = toy.build()
    if result.status:  # nothing new may have to be made right there: then it was none of the build's concern
        says(result, "cannot be written", "make the folder writable and build again", str(toy.root))
    recovers(toy, whole)


def test_a_file_system_that_is_read_only(tmp_path: Path, whole: Toy) -> None:
    toy = make_toy(tmp_path / "toy")
    add_dvc(toy)
    with mounted(toy.root, "--bind", str(toy.root)):
        mount("-o", "remount,ro,bind", str(toy.root))
        with contextlib.chdir(toy.root):
            result = toy.build()
    says(result, "cannot be written", "read-only")
    recovers(toy, whole)


def test_artifacts_on_another_file_system(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy")
    with mounted(toy.root / "artifacts", "-t", "tmpfs", "tapeout-test"):
        result = toy.build()
    says(result, "artifacts/build/load cannot be written", "must lie on one file system")
    assert toy.build().status == 0


VANISH = {
    "the model": ("load", "import shutil; shutil.rmtree('data/model')", "data/model"),
    "an input": ("quantize", "import shutil; shutil.rmtree('artifacts/build/load')", "artifacts/build/load"),
    "all artifacts": ("convert", "import shutil; shutil.rmtree('artifacts')", "artifacts/build/quantize"),
    "the scratch": ("load", "import shutil; shutil.rmtree('.tapeout/staging')", ".tapeout/staging"),
}


@pytest.mark.parametrize("case", VANISH)
def test_what_vanishes_during_a_build(case: str, toy: Toy, whole: Toy) -> None:
    """Removed by somebody while the stage that needs it starts; with its cause gone, all is as if nothing had been."""
    stage, code, place = VANISH[case]
    module = f"toystages/{stage}.py"
    first = {
        "load": '    work.log("loading")',
        "quantize": "    for step",
        "convert": '    (work.out / "graph").mkdir()',
    }
    text = (toy.root / module).read_text()
    toy.edit(module, first[stage], f"    {code}\n{first[stage]}")
    add_dvc(toy)
    result = toy.build()
    says(result, place, "build again")
    toy.write(module, text)
    toy.write("data/model/weights.txt", "0.25 0.5\n")
    toy.write("artifacts/.gitignore", (whole.root / "artifacts/.gitignore").read_text())
    recovers(toy, whole, missing="artifacts/build/")


def test_an_artifact_that_vanishes_after_it_was_made_comes_back(toy: Toy, whole: Toy) -> None:
    toy.edit(
        "toystages/package.py", "    data =", "    import shutil; shutil.rmtree('artifacts/build', True)\n    data ="
    )
    add_dvc(toy)
    toy.build()
    shutil.copy(whole.root / "toystages/package.py", toy.root / "toystages/package.py")
    assert toy.build().status == 0
    assert toy.files() == whole.files()
