"""work.map with executor=ray: the same results as at home, whatever is lost on the way."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.machines import CONFIG, in_thread, until, with_remote, words
from tests.pipelines.mapped import make_mapped, measurements, spans
from tests.pipelines.toy import Toy

pytest.importorskip("ray", reason="executor=ray needs the extra 'ray'")


FOUND = "build/search/found.json"
SCORE = "toystages/score.py"


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    project = make_mapped(tmp_path / "toy")
    project.write("conf/executor/ray.yaml", CONFIG)
    return project


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the search finds on this machine."""
    toy = make_mapped(tmp_path_factory.mktemp("home") / "toy")
    assert toy.build("--jobs", "1").status == 0
    return toy.files()[FOUND]


@pytest.mark.slow
def test_the_cluster_finds_what_one_worker_finds(cluster: Any, toy: Toy, expected: bytes) -> None:
    result = toy.build(*words(cluster, "search.seconds=0.5"))
    assert result.status == 0, result.err
    assert toy.files()[FOUND] == expected
    assert measurements(result.summary) == [0, 1, 2, 3, 4, 5]
    assert "scored 5" in (toy.root / ".tapeout/logs/search.log").read_text()
    assert len({process for process, _, _ in spans(toy).values()}) > 1


@pytest.mark.slow
def test_a_waiting_stage_lends_its_core(toy: Toy, expected: bytes) -> None:
    """A cluster of one core runs the stage and its items."""
    toy.edit("conf/executor/ray.yaml", "local_nodes: 2", "local_nodes: 1")
    toy.edit("conf/pipeline/main.yaml", "config: search", f"config: search\n    resources: {{cpus: {cores()}}}")
    toy.edit("toystages/search.py", "items):", f"items, cpus={cores()}):")
    result = toy.build("executor=ray")
    assert result.status == 0, result.err
    assert toy.files()[FOUND] == expected


def cores() -> int:
    return len(os.sched_getaffinity(0))


def test_errors_come_back_as_they_were(cluster: Any, toy: Toy) -> None:
    toy.edit(SCORE, "    began =", "    if item['width'] == 3:\n        raise ValueError('no width')\n    began =")
    result = toy.build(*words(cluster, "search.seconds=1"))
    assert result.status == 1
    assert "toystages.score.score failed: ValueError: no width" in result.err
    assert "tried again" not in result.err


@pytest.mark.slow
def test_a_lost_item_is_tried_again(cluster: Any, toy: Toy, expected: bytes) -> None:
    kill = "    mark = Path(config.trace + '.mark')\n    if item['width'] == 3 and not mark.exists():\n"
    kill += "        mark.touch()\n        os.kill({}, 9)\n        time.sleep(30)\n    began ="
    toy.edit(SCORE, "    began =", kill.format("os.getpid()"))
    result = toy.build(*words(cluster))
    assert result.status == 0, result.err
    assert (
        "item 3 of toystages.score.score: its worker process was killed by SIGKILL; it is tried again (1 of 2)"
        in (toy.root / ".tapeout/logs/search.log").read_text()
    )
    toy.edit(SCORE, "os.getpid(), 9", "os.getppid(), 9")  # the Ray worker around it
    (toy.root / "trace.mark").unlink()
    again = toy.build(*words(cluster))
    assert again.status == 0, again.err
    assert (
        "item 3 of toystages.score.score: its Ray worker was lost"
        in (toy.root / ".tapeout/logs/search.log").read_text()
    )
    assert toy.files()[FOUND] == expected


@pytest.mark.slow
def test_a_stage_that_is_lost_takes_its_items_along(cluster: Any, toy: Toy, expected: bytes) -> None:
    toy.edit("toystages/search.py", "    found = {}", "    (work.scratch / 'pid').write_text(PID)\n    found = {}")
    toy.edit("toystages/search.py", "import json\n", "import json\nimport os\n\nPID = str(os.getppid())\n")
    thread, results = in_thread(lambda: toy.build(*words(cluster, "search.seconds=2"), env={}))
    traces = toy.root / "trace"
    until(lambda: traces.is_dir() and any(traces.iterdir()), "the first item")
    (pid,) = toy.root.glob(".tapeout/scratch/search/*/state/pid")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    thread.join(timeout=120)
    result = results[0]
    assert result.status == 0, result.err
    assert "search: its Ray worker was lost" in result.err
    assert toy.files()[FOUND] == expected
    time.sleep(1)
    assert not [path for path in Path("/proc").glob("[0-9]*") if works_on_an_item(path, toy)]


def works_on_an_item(process: Path, toy: Toy) -> bool:
    """Say whether a process of the cluster still runs something for the toy."""
    try:
        return (process / "cwd").readlink() == toy.root and "search.log" in str((process / "fd/1").readlink())
    except OSError:
        return False


@pytest.mark.slow
def test_through_a_dvc_remote_nothing_is_shared(
    cluster: Any,
    toy: Toy,
    expected: bytes,
    tmp_path: Path,
) -> None:
    with_remote(toy, tmp_path / "depot")
    toy.edit("conf/pipeline/main.yaml", "    calls:", "    resources: {memory_mib: 300}\n    calls:")
    toy.edit("toystages/search.py", "items):", "items, folders=True):")
    read = "(folder / 'a/name').read_text()"
    toy.edit(
        "toystages/search.py",
        "= result",
        f"= {{'file': {read}, **result}}\n        assert str(work.scratch) in str(folder)",
    )
    toy.edit("toystages/search.py", "for index, result", "for index, (result, folder)")
    write = "    (work.out / 'a').mkdir()\n    (work.out / 'a/name').write_text(str(item['width']))\n"
    toy.edit(SCORE, "    began =", f"{write}    began =")
    result = toy.build(*words(cluster, "executor.store=depot", "search.seconds=0.3"))
    assert result.status == 0, result.err
    found = json.loads(toy.files()[FOUND])
    assert [each.pop("file") for each in found] == ["0", "1", "2", "3", "4", "5"]
    assert found == json.loads(expected)
    assert measurements(result.summary) == [0, 1, 2, 3, 4, 5]
    log = (toy.root / ".tapeout/logs/search.log").read_text()
    assert all(f"scored {each}\n" in log for each in range(6))


@pytest.mark.slow
def test_stages_that_hold_all_memory_get_their_items_done(cluster: Any, toy: Toy, expected: bytes) -> None:
    toy.edit("conf/pipeline/main.yaml", "    calls:", "    resources: {memory_mib: 900}\n    calls:")
    toy.edit("toystages/search.py", "items):", "items, memory_mib=2000):")  # more than any machine has
    result = toy.build(*words(cluster, "search.count=2"))
    assert result.status == 0, result.err
    assert json.loads(toy.files()[FOUND]) == json.loads(expected)[:2]
