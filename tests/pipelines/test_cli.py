import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.toy import Toy

HEAVY = ("torch", "coremltools", "onnx", "onnxruntime", "mlflow", "nncf", "rich", "numpy", "dvc")


def test_the_command_line_imports_nothing_heavy(built: Toy) -> None:
    for command in ("plan", "build"):
        done = built.call(sys.executable, "-X", "importtime", "-m", "pipelines.cli", command)
        assert done.status == 0
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.err.splitlines() if "|" in line}
        assert "argparse" in imported  # it has looked at the right lines
        assert not imported & set(HEAVY)


def test_the_command_line_imports_nothing_heavy_in_this_repository(tmp_path: Path) -> None:
    """On a copy of conf/ and stages/, with a model that only `plan` would take for one."""
    here, project = Path(__file__).resolve().parents[2], Toy(tmp_path)
    for name in ("conf", "stages"):
        shutil.copytree(here / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(here / "pyproject.toml", tmp_path)
    project.write("model/config.json", "{}")
    words = ["-X", "importtime", "-m", "pipelines.cli", "plan", "model.path=model"]
    done = project.call(sys.executable, *words)
    assert done.status == 0, done.err
    assert done.out.startswith("load ")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.err.splitlines() if "|" in line}
    assert "stages" in imported
    assert not imported & {*HEAVY, "transformers", "sklearn", "scipy", "pandas"}


def test_verify_names_what_is_damaged_in_the_store(toy_built: Toy) -> None:
    before = toy_built.files()
    assert toy_built.run("verify").status == 0
    path = next(each for each in (toy_built.root / ".tapeout/cache").rglob("*") if each.is_file())
    path.chmod(0o644)
    path.write_bytes(b"x" + path.read_bytes())
    result = toy_built.run("verify")
    assert result.status == 1
    assert path.relative_to(toy_built.root).as_posix() in result.out
    assert toy_built.build().status == 0
    assert toy_built.files() == before
    assert toy_built.run("verify").out.strip() == "nothing is damaged"


def test_verify_names_what_is_damaged_in_the_workspace(toy_built: Toy) -> None:
    before = toy_built.files()
    model, artifacts = toy_built.root / "artifacts/phone/model.bin", toy_built.root / "artifacts"
    model.write_bytes(bytes([model.read_bytes()[0] ^ 1]) + model.read_bytes()[1:])
    (artifacts / "build/load/weights.txt").unlink()
    (artifacts / "build/convert/extra").write_text("")
    (artifacts / "build/validate.json").write_text("{}")
    (artifacts / "build/stray").mkdir()
    result = toy_built.run("verify", "--json")
    assert result.status == 1
    assert {line.partition(":")[0] for line in json.loads(result.out)["damaged"]} == {
        "artifacts/build/load/weights.txt",
        "artifacts/build/convert/extra",
        "artifacts/build/validate.json",
        "artifacts/build/stray",
        "artifacts/phone/model.bin",
    }
    assert toy_built.build().status == 0
    assert {**toy_built.files(), **before} == toy_built.files()
    (artifacts / "build/stray").rmdir()
    assert toy_built.run("verify").status == 0


BLOCKED = [".tapeout", "artifacts", "artifacts/build", ".tapeout/staging", ".tapeout/scratch", ".tapeout/logs"]
BLOCKED += [".tapeout/ledger", ".tapeout/cache", ".tapeout/builds", ".tapeout/last.json"]


@pytest.mark.parametrize("name", BLOCKED)
def test_what_cannot_be_written_gets_one_clear_message(name: str, toy: Toy) -> None:
    """A file where a folder should be, or the other way round: this stops root too, as a read-only mode does not."""
    if name.endswith(".json"):
        (toy.root / name).mkdir(parents=True)
    else:
        toy.write(name, "")
    result = toy.run("build", "pipeline=pair")
    assert result.status == 1, result.err
    assert "cannot be written" in result.err
    assert "move it away and build again" in result.err
    assert toy.run("plan", "pipeline=pair").status == 0
    assert (toy.root / name).exists()


def test_plan_leaves_a_damaged_object_where_it_is(toy_built: Toy) -> None:
    objects = [path for path in (toy_built.root / ".tapeout/cache").rglob("*") if path.is_file()]
    for path in objects:
        path.chmod(0o644)
        path.write_bytes(b"x" + path.read_bytes())
    (toy_built.root / "artifacts/phone/model.bin").unlink()
    (row,) = [line for line in toy_built.run("plan").out.splitlines() if line.startswith("package-phone")]
    assert row.split()[1] == "run"
    assert row.endswith("its result is not in the store")
    assert toy_built.run("explain", "load").status == 0
    assert all(path.is_file() for path in objects)


@pytest.mark.parametrize(
    "words", [["plan"], ["explain", "load"], ["plan", "--json"], ["builds", "--json"]], ids=" ".join
)
def test_a_reader_that_has_seen_enough_ends_it_silently(words: list[str], built: Toy) -> None:
    """As in `tapeout explain load | head -1`: all output is less than a buffer, and is written when all is done."""
    from tests.pipelines.toy import environment

    command = [sys.executable, "-m", "pipelines.cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=built.root, env=environment(), text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_the_report_is_one_file_without_links(toy_built: Toy) -> None:
    toy_built.build()
    assert toy_built.run("report").out.strip() == "artifacts/report.html"
    page = (toy_built.root / "artifacts/report.html").read_text()
    assert "<h2>phone</h2>" in page
    assert "3.00 MiB" in page
    assert "http" not in page


def test_there_is_no_report_without_a_build(toy: Toy) -> None:
    assert toy.run("report").status == 2


def test_a_damaged_summary_is_named(toy: Toy) -> None:
    toy.write(".tapeout/last.json", "{")
    result = toy.run("report")
    assert result.status == 2
    assert "last.json is damaged" in result.err


def test_what_the_system_refuses_is_one_line(toy: Toy) -> None:
    result = toy.run("plan", f"model.path={'a' * 300}")
    assert result.status == 1
    assert result.err.endswith("File name too long\n")
    assert result.err.count("\n") == 1


def test_stage_runs_a_node_even_if_it_is_known(toy_built: Toy) -> None:
    before = toy_built.files()
    result = toy_built.run("stage", "convert", "--json")
    assert result.nodes == {"convert": "built"}
    assert toy_built.files() == before


def test_another_build_is_waited_for(toy_built: Toy) -> None:
    import fcntl
    import subprocess

    from tests.pipelines.toy import environment

    with open(toy_built.root / ".tapeout/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        words = [sys.executable, "-m", "pipelines.cli", "build"]
        process = subprocess.Popen(words, cwd=toy_built.root, env=environment(), stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert "waiting" in process.stderr.readline()
        fcntl.flock(lock, fcntl.LOCK_UN)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_ctrl_c_stops_the_workers_and_keeps_what_is_finished(toy: Toy) -> None:
    import signal
    import subprocess

    from tests.pipelines.toy import environment

    toy.edit(
        "toystages/convert.py",
        "    (work.out",
        "    import time; time.sleep(60)\n    (work.out",
    )
    words = [sys.executable, "-m", "pipelines.cli", "build"]
    process = subprocess.Popen(words, cwd=toy.root, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("convert"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert toy.run("plan").out.splitlines()[1].split()[:2] == ["quantize", "cached"]
