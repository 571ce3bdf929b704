"""executor=ray, on real clusters of this machine: the same bytes, whatever is lost on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.machines import CONFIG, add_node, in_thread, until, with_remote, words
from tests.pipelines.toy import NODES, Toy, environment, make_toy

pytest.importorskip("ray", reason="executor=ray needs the extra 'ray'")

MARK = "TAPEOUT_TEST_MARK"


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    project = make_toy(tmp_path / "toy")
    project.write("conf/executor/ray.yaml", CONFIG)
    return project


def test_two_nodes_give_the_same_bytes_and_records(cluster: Any, toy: Toy, built: Toy) -> None:
    result = toy.build(*words(cluster))
    assert result.status == 0, result.err
    assert result.nodes == dict.fromkeys(NODES, "built")
    assert toy.files() == built.files()  # the records of all nodes among them
    assert (toy.root / ".tapeout/logs/load.log").read_text() == "loading\n"
    assert [each["value"] for each in result.summary["measurements"]["quantize"]] == [1.0, 0.5, 1 / 3]
    assert all(each["memory_mib"] > 0 for each in result.summary["nodes"])


def test_a_build_of_cached_nodes_asks_no_cluster(toy_built: Toy) -> None:
    toy_built.write("conf/executor/ray.yaml", CONFIG)
    code = (
        "import sys; from pipelines.cli import main\n"
        "assert main(['build', 'executor=ray', 'executor.address=nowhere']) == 0\n"
        "assert not {'ray', 'pipelines.cluster', 'dvc'} & set(sys.modules)"
    )
    result = toy_built.call(sys.executable, "-c", code)
    assert result.status == 0, result.err
    assert "6 cached" in result.out


def test_a_wrong_address_is_said_at_once(toy: Toy) -> None:
    began = time.monotonic()
    result = toy.build("executor=ray", "executor.address=127.0.0.1:1")
    assert result.status == 2
    assert "executor.address=127.0.0.1:1: Ray cannot connect" in result.err
    assert time.monotonic() - began < 20
    assert toy.files() == {}


def test_a_missing_ray_is_said_with_what_to_install(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cluster.importlib.util.find_spec", lambda name: None)
    result = toy.build("executor=ray")
    assert result.status == 2
    assert "pip install 'tapeout[ray]'" in result.err


def test_jobs_are_for_the_local_executor(toy: Toy) -> None:
    result = toy.build("executor=ray", "--jobs", "2")
    assert result.status == 2
    assert "executor=ray has no use for --jobs" in result.err


KILL_ONCE = """
import os
import signal

from toystages.folder import Folder


def quantize(checkpoint: Folder, config, work):
    if not (work.scratch / "mark").exists():
        (work.scratch / "mark").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    (work.out / "codes.txt").write_text(f"{checkpoint.text('weights.txt')} in {config.bits}/{config.group_size}")
"""


def test_a_stage_that_is_killed_is_tried_again(cluster: Any, toy: Toy, built: Toy) -> None:
    toy.write("toystages/quantize.py", KILL_ONCE)
    result = toy.build(*words(cluster))
    assert result.status == 0, result.err
    assert "quantize: its worker process was killed by SIGKILL; it is tried again (1 of 2)" in result.err
    name = "build/quantize/codes.txt"
    assert toy.files()[name] == built.files()[name]


def test_a_stage_that_fails_says_so_and_is_not_tried_again(cluster: Any, toy: Toy) -> None:
    toy.edit("toystages/quantize.py", "    for step", "    raise ValueError('no codes')\n    for step")
    result = toy.build(*words(cluster))
    assert result.status == 1
    assert result.nodes["quantize"] == "failed"
    assert "toystages.quantize.quantize failed: ValueError: no codes" in result.err
    assert "tried again" not in result.err


def declare(toy: Toy, stage: str, resources: str) -> None:
    start = f"{stage}: {{run: toystages.{stage}.{stage},"
    toy.edit("conf/pipeline/main.yaml", start, f"{start} resources: {resources},")


def test_what_no_machine_has_is_said_at_once(cluster: Any, toy: Toy) -> None:
    declare(toy, "quantize", "{cpus: 3, memory_mib: 10}")
    result = toy.build(*words(cluster))
    assert result.status == 1
    assert result.nodes["quantize"] == "failed"
    assert (
        "quantize needs 3 cores and 10 MiB on one machine; the most that one of the Ray cluster's 2 has is"
        in result.err
    )


SPANS = """
import time
from pathlib import Path

from toystages.folder import Folder


def convert(model: Folder, device, work):
    marks = Path(__file__).parent / "marks"
    marks.mkdir(exist_ok=True)
    (marks / device.runtime).write_text("")
    began = time.time()
    while time.time() - began < 4 and len(list(marks.iterdir())) < 3:
        time.sleep(0.05)
    (work.out / "graph").mkdir()
    (work.out / "graph" / "model.bin").write_text("")
    work.metric("began", began)
    work.metric("ended", time.time())
"""


@pytest.mark.slow
def test_memory_that_stages_declare_is_kept_to(cluster: Any, toy: Toy) -> None:
    """Cores are there for three at a time; memory for one on each of two nodes."""
    toy.write("conf/device/clock.yaml", "# @package device.clock\nname: clock\nruntime: c\nbudget: 1\noverrides: {}\n")
    toy.edit(
        "conf/pipeline/main.yaml", "{run: toystages.convert", "{resources: {memory_mib: 700}, run: toystages.convert"
    )
    toy.write("toystages/convert.py", SPANS)
    result = toy.build(*words(cluster, "device=[phone,watch,clock]"))
    assert result.status == 0, result.err
    measured = [values for name, values in result.summary["measurements"].items() if name.startswith("convert")]
    times = [{each["name"]: each["value"] for each in values} for values in measured]
    assert len(times) == 3
    assert max(each["began"] for each in times) >= min(each["ended"] for each in times)


MEETING = """
import os
import time
from pathlib import Path

from toystages.folder import Folder


def convert(model: Folder, device, work):
    marks = Path(__file__).parent / "marks"
    marks.mkdir(exist_ok=True)
    raylet = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1]
    (marks / f"{device.runtime}-{raylet}").write_text(str(os.getpid()))
    while not (marks / "go").exists():
        time.sleep(0.05)
    (work.out / "graph").mkdir()
    (work.out / "graph" / "model.bin").write_text(f"{model.text('codes.txt')} for {device.runtime}")
"""


@pytest.mark.slow
def test_a_machine_that_is_lost_in_mid_build_changes_no_byte(cluster: Any, toy: Toy, tmp_path: Path) -> None:
    toy.write("toystages/convert.py", MEETING)
    toy.edit("conf/pipeline/main.yaml", "{run: toystages.convert", "{resources: {cpus: 2}, run: toystages.convert")
    marks = toy.root / "toystages/marks"
    thread, results = in_thread(lambda: toy.build(*words(cluster, "device=[phone,watch]"), env={}))
    until(lambda: marks.is_dir() and len(list(marks.iterdir())) == 2, "one convert on each node")
    other = next(iter(cluster.worker_nodes))
    raylet = other.all_processes["raylet"][0].process.pid
    lost = next(path for path in marks.iterdir() if path.name.endswith(f"-{raylet}"))
    stage = Path("/proc", lost.read_text())
    cluster.remove_node(other, allow_graceful=False)
    until(lambda: not stage.exists() or "zombie" in (stage / "status").read_text(), "the end of the stage")
    (marks / "go").write_text("")
    thread.join(timeout=120)
    add_node(cluster)
    cluster.wait_for_nodes()
    result = results[0]
    assert result.status == 0, result.err
    node = {"a": "convert-phone", "b": "convert-watch"}[lost.name[0]]
    assert f"{node}: its Ray worker was lost: " in result.err
    assert "it is tried again (1 of 2)" in result.err

    local = make_toy(tmp_path / "local")
    local.write("toystages/convert.py", MEETING)
    local.write("toystages/marks/go", "")
    assert local.build("device=[phone,watch]").status == 0
    assert toy.files() == local.files()


def test_through_a_dvc_remote_nothing_is_shared(cluster: Any, toy: Toy, built: Toy, tmp_path: Path) -> None:
    depot = tmp_path / "depot"
    with_remote(toy, depot)
    result = toy.build(*words(cluster, "executor.store=depot"))
    assert result.status == 0, result.err

    def results(project: Toy) -> dict[str, bytes]:
        return {name: data for name, data in project.files().items() if name.count("/") > 1 or "build" not in name}

    assert {name: data for name, data in results(toy).items() if name != ".gitignore"} == results(built)
    assert (toy.root / ".tapeout/logs/load.log").read_text() == "loading\n"
    assert [each["value"] for each in result.summary["measurements"]["quantize"]] == [1.0, 0.5, 1 / 3]
    status = toy.call("dvc", "status", "--cloud", "--remote", "depot")
    assert ".json" in status.out  # the records, which only `dvc push` brings there, and nothing else:
    assert not [line for line in status.out.splitlines() if line.startswith("\t") and ".json" not in line], status.out


@pytest.mark.slow
def test_what_fails_on_the_way_is_said(cluster: Any, toy: Toy, tmp_path: Path) -> None:
    depot = tmp_path / "depot"
    with_remote(toy, depot)
    assert toy.build(*words(cluster, "executor.store=depot")).status == 0
    damaged = next(path for path in depot.rglob("*") if path.is_file() and path.read_bytes() == b"0.25 0.5")
    damaged.chmod(0o644)
    damaged.write_bytes(b"0.25 0.6")
    result = toy.build(*words(cluster, "executor.store=depot", "quantize.bits=3"))
    assert result.status == 1
    assert "the DVC remote 'depot' holds a damaged object" in result.err

    toy.edit(
        "toystages/quantize.py", "    for step", "    print('before')\n    raise ValueError('no codes')\n    for step"
    )
    damaged.write_bytes(b"0.25 0.5")
    result = toy.build(*words(cluster, "executor.store=depot"))
    assert "toystages.quantize.quantize failed: ValueError: no codes" in result.err
    assert "| before" in result.err
    assert str(toy.root / ".tapeout/logs/quantize.log") in result.err


def test_a_remote_that_is_not_there_is_said(toy: Toy, cluster: Any, tmp_path: Path) -> None:
    with_remote(toy, tmp_path / "depot")
    result = toy.build(*words(cluster, "executor.store=depott"))
    assert result.status == 2
    assert "executor.store=depott: there is no such DVC remote\n  did you mean 'depot'?" in result.err


def drivers(toy: Toy) -> list[int]:
    """The processes that speak with Ray for a build of the toy."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"{MARK}={toy.root}".encode() in (path / "environ").read_bytes()
            if ours and b"pipelines.ray_driver" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def group(leader: int) -> list[str]:
    """The processes of a group, without those that have ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, number = (path / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            found.append(path.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_nothing_of_a_local_cluster_outlives_its_build(number: int, status: int, toy: Toy) -> None:
    toy.write("toystages/convert.py", MEETING)
    marks = toy.root / "toystages/marks"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "build", "executor=ray"],
        cwd=toy.root,
        env=environment({MARK: str(toy.root)}),
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: marks.is_dir() and any(marks.iterdir()), "a stage on the cluster", seconds=120)
    (driver,) = drivers(toy)
    assert len(group(driver)) > 5
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert time.monotonic() - began < 15
    assert "Traceback" not in err
    until(lambda: not group(driver), "the end of all processes", seconds=10)


@pytest.mark.slow
def test_a_local_cluster_that_dies_is_started_again(toy: Toy, built: Toy) -> None:
    toy.write("toystages/convert.py", MEETING)
    marks = toy.root / "toystages/marks"
    thread, results = in_thread(lambda: toy.build("executor=ray", env={MARK: str(toy.root)}))
    until(lambda: marks.is_dir() and any(marks.iterdir()), "a stage on the cluster", seconds=120)
    (driver,) = drivers(toy)
    os.kill(driver, signal.SIGKILL)
    (marks / "go").write_text("")
    thread.join(timeout=200)
    result = results[0]
    assert result.status == 0, result.err
    assert "convert: the connection with the Ray cluster was lost; it is tried again (1 of 2)" in result.err
    assert toy.files()["phone/manifest.json"] == built.files()["phone/manifest.json"]
    until(lambda: not group(driver), "the end of all processes", seconds=10)
