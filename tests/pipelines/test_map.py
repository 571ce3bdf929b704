"""work.map on this machine: results, order, errors, lost processes, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import StageError
from pipelines.loading import load_from_source
from pipelines.workspace import Event, Workspace
from tests.pipelines.mapped import make_mapped, measurements, most_at_once, spans
from tests.pipelines.toy import Toy, environment

FOUND = "artifacts/build/search/found.json"


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_mapped(tmp_path / "toy")


def processes(toy: Toy) -> list[str]:
    """The command lines of the processes whose working folder is the project."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cwd").readlink() == toy.root:
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_results_are_the_same_whoever_calls(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = toy.build("--jobs", "1")
    assert one.status == 0, one.err
    assert most_at_once(toy) == 1
    found = (toy.root / FOUND).read_bytes()
    first, record = toy.files(), (toy.root / "artifacts/build/search.json").read_bytes()
    assert b'"names": ["phone", "tablet"], "width": 5, "seed": [1, 2]' in found
    assert measurements(one.summary) == [0, 1, 2, 3, 4, 5]
    assert "scored 5" in (toy.root / ".tapeout/logs/search.log").read_text()
    assert not list((toy.root / ".tapeout/scratch").iterdir())

    for path in (toy.root / "trace").iterdir():
        path.unlink()
    toy.call("rm", "-rf", ".tapeout", "artifacts")
    two = toy.build("--jobs", "2")
    assert two.status == 0, two.err
    assert toy.files() == first
    assert (toy.root / "artifacts/build/search.json").read_bytes() == record
    assert processes(toy) == []

    monkeypatch.syspath_prepend(str(toy.root))
    load_from_source([toy.root])
    alone = in_this_process(toy, tmp_path)
    for name in [name for name in sys.modules if name.startswith("toystages")]:
        monkeypatch.delitem(sys.modules, name)
    assert alone == json.loads(found)


def in_this_process(toy: Toy, tmp_path: Path) -> list[Any]:
    from omegaconf import OmegaConf
    from toystages.folder import Folder
    from toystages.search import search

    config = OmegaConf.create({"count": 6, "seconds": 0.0, "trace": str(tmp_path / "trace")})
    checkpoint = Folder(toy.root / "artifacts/build/load")
    devices = {name: OmegaConf.create({"name": name}) for name in ("phone", "tablet")}
    events: list[Event] = []
    given = {"checkpoint": checkpoint, "config": config, "devices": devices}
    work = Workspace(tmp_path, tmp_path / "scratch", events.append, given=given)
    search(checkpoint, config, devices, work)
    assert len(events) == 18  # six of the stage's and six of what it mapped
    return json.loads((tmp_path / "found.json").read_text())


def test_items_run_beside_each_other_while_the_stage_waits(toy: Toy) -> None:
    result = toy.build("--jobs", "2", "search.seconds=0.3")
    assert result.status == 0, result.err
    assert most_at_once(toy) == 2
    assert len({process for process, _, _ in spans(toy).values()}) == 2  # they stay warm


def test_one_stage_alone_maps_too(toy: Toy) -> None:
    """As DVC runs it."""
    assert toy.build("--jobs", "1").status == 0
    found = (toy.root / FOUND).read_bytes()
    assert toy.run("stage", "search").status == 0
    assert (toy.root / FOUND).read_bytes() == found


def test_more_than_the_cores_or_the_memory_there_is_runs_alone(toy: Toy) -> None:
    toy.edit("toystages/search.py", 'score.score", items', 'score.score", items, cpus=9')
    assert toy.build("--jobs", "2", "search.seconds=0.1").status == 0
    assert most_at_once(toy) == 1
    toy.edit("toystages/search.py", "cpus=9", "memory_mib=500")
    assert toy.build("--jobs", "2", "search.seconds=0.1", "executor.memory_mib=600").status == 0
    assert most_at_once(toy) == 1


def test_two_stages_that_map_share_the_machine(toy: Toy) -> None:
    pipeline = (toy.root / "conf/pipeline/main.yaml").read_text()
    stage = pipeline[pipeline.index("  search:") :]
    again = stage.replace("search:", "again:", 1).replace("config:", "libraries: [numpy]\n    config:")
    toy.write("conf/pipeline/main.yaml", pipeline + again)
    result = toy.build("--jobs", "2", "search.seconds=0.05")
    assert result.status == 0, result.err
    assert result.nodes == dict.fromkeys(["load", "search", "again"], "built")
    files = toy.files()
    assert files["build/search/found.json"] == files["build/again/found.json"]


def test_files_of_items_are_there_when_the_result_is(toy: Toy) -> None:
    toy.edit("toystages/search.py", "items):", "items, folders=True):")
    toy.edit("toystages/search.py", "found[index] = result", "value, folder = result\n        found[index] = " + READ)
    toy.edit("toystages/score.py", "    began", "    (work.out / 'name').write_text(str(item['width']))\n    began")
    result = toy.build("--jobs", "2")
    assert result.status == 0, result.err
    assert json.loads((toy.root / FOUND).read_text()) == ["0", "1", "2", "3", "4", "5"]
    assert not list((toy.root / ".tapeout/scratch").iterdir())


READ = "(folder / 'name').read_text(); assert value['width'] == index; assert len(list(folder.iterdir())) == 1"


def test_equal_items_have_folders_of_their_own(toy: Toy) -> None:
    toy.edit("toystages/search.py", '{"width": width, ', '{"width": 0, ')
    toy.edit("toystages/score.py", "    began", "    assert not list(work.scratch.iterdir())\n    began")
    toy.edit("toystages/score.py", "    began", "    (work.scratch / 'x').touch()\n    began")
    assert toy.build("--jobs", "2", "search.seconds=0.05").status == 0


def test_an_error_is_raised_at_the_stage_and_ends_the_rest(toy: Toy) -> None:
    toy.edit(
        "toystages/score.py", "    began =", "    if item['width'] == 0:\n        raise ValueError('no')\n    began ="
    )
    began = time.monotonic()
    result = toy.build("--jobs", "2", "search.seconds=20")
    assert result.status == 1 and time.monotonic() - began < 15
    assert "toystages.score.score failed: ValueError: no" in result.err
    assert "raise ValueError('no')" in result.err  # the end of the log tells where
    assert processes(toy) == []


def test_an_error_keeps_its_class_its_message_and_its_hint(toy: Toy) -> None:
    toy.edit("toystages/score.py", "import os\n", f"import os\n{OWN_ERROR}")
    toy.edit("toystages/score.py", "    began =", "    raise Lost('it is lost', hint='find it')\n    began =")
    toy.edit("toystages/search.py", "    for index", f"{CATCHES}    for index")
    result = toy.build()
    assert result.status == 0, result.err
    assert json.loads((toy.root / FOUND).read_text()) == ["Lost", "it is lost", "find it"]


OWN_ERROR = "from pipelines.errors import StageError\n\n\nclass Lost(StageError):\n    pass\n\n\n"
CATCHES = """
    from toystages.score import Lost

    try:
        next(work.map("toystages.score.score", items))
    except Lost as error:
        (work.out / "found.json").write_text(json.dumps(["Lost", error.message, error.hint]))
        return
"""

MISTAKES = {
    "a function that is not declared": ('"toystages.score.score"', '"toystages.score.scor"', "did you mean"),
    "an item that JSON cannot hold": ('"seed": [1, 2]', '"seed": work', "item 0 of toystages.score.score cannot be"),
    "a result that JSON cannot hold": ("**item}", "**item, 'work': work}", "returned a dict that cannot be JSON"),
    "a parameter that nobody gives": ("def score(item,", "def score(item, model,", "parameter 'model'"),
    "a map in a map": ("    began =", "    work.map('toystages.score.score', [])\n    began =", "is itself mapped"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_said(mistake: str, toy: Toy) -> None:
    old, new, message = MISTAKES[mistake]
    toy.edit("toystages/search.py" if old in (toy.root / "toystages/search.py").read_text() else SCORE, old, new)
    result = toy.build()
    assert result.status == 1 and message in result.err, result.err


SCORE = "toystages/score.py"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("calls: [toystages.score.score]", "calls: [toystages.score.scor]", "did you mean 'score'"),
        ("calls: [toystages.score.score]", "calls: [toystages.scor.score]", "there is no module toystages.scor"),
        ("calls: [toystages.score.score]", "calls: [score]", "is no package.module.function"),
        ("calls: [toystages.score.score]", "calls: toystages.score.score", "must be a list of package.module.function"),
    ],
)
def test_wrong_declarations_are_told_before_anything_runs(old: str, new: str, message: str, toy: Toy) -> None:
    toy.edit("conf/pipeline/main.yaml", old, new)
    result = toy.run("plan")
    assert result.status == 2 and message in result.err, result.err


def test_the_mapped_code_is_part_of_the_key(toy: Toy) -> None:
    assert toy.build().status == 0
    toy.edit(SCORE, "/ 3", "/ 4")
    result = toy.build()
    assert result.nodes["search"] == "built"
    assert result.why["search"] == "toystages/score.py changed"


def test_mapped_code_that_changes_meanwhile_spoils_the_result(toy: Toy) -> None:
    edit = (
        "if item['width'] == 2:\n        p = Path(__file__)\n        p.write_text(p.read_text() + 'x = 1')\n    began ="
    )
    toy.edit(SCORE, "began =", edit)
    result = toy.build("--jobs", "1")
    assert result.status == 1
    assert "search: changed while it ran: toystages.score" in result.err


def test_mapped_code_that_was_another_meanwhile_spoils_the_result(toy: Toy) -> None:
    """A process that dies on the way is replaced by one that imports what lies there just then."""
    text = (toy.root / SCORE).read_text()
    die = (
        "    mark = Path(config.trace + '.mark')\n    if item['width'] == 2 and not mark.exists():\n"
        "        mark.write_text(Path(__file__).read_text())\n        Path(__file__).write_text(mark.read_text()"
        ".replace('/ 3', '/ 4'))\n        os.kill(os.getpid(), 9)\n    if item['width'] == 5:\n"
        "        Path(__file__).write_text(mark.read_text())\n    began ="
    )
    toy.write(SCORE, text.replace("    began =", die))
    result = toy.build("--jobs", "1")
    assert result.status == 1, result.err
    assert "search: changed while it ran: toystages.score" in result.err


def test_a_lost_item_is_tried_again_with_its_scratch(toy: Toy) -> None:
    kill = "\n        (work.scratch / 'mark').touch()\n        os.kill(os.getpid(), 9)\n    began ="
    toy.edit(SCORE, "    began =", f"    if item['width'] == 3 and not (work.scratch / 'mark').exists():{kill}")
    result = toy.build("--jobs", "2")
    assert result.status == 0, result.err
    log = (toy.root / ".tapeout/logs/search.log").read_text()
    assert "search: item 3 of toystages.score.score: its worker process was killed by SIGKILL; it is tried" in log


def test_an_item_that_is_lost_again_and_again_fails_the_stage(toy: Toy) -> None:
    toy.edit(SCORE, "    began =", "    if item['width'] == 3:\n        os.kill(os.getpid(), 9)\n    began =")
    result = toy.build("--jobs", "2")
    assert result.status == 1
    assert "search: item 3 of toystages.score.score: its worker process was killed by SIGKILL" in result.err
    assert "tried again (1 of 1)" in result.err  # in the log; the stage itself is not tried again
    assert processes(toy) == []


def test_a_stage_that_is_killed_while_it_waits_takes_its_items_along(toy: Toy) -> None:
    toy.edit(SCORE, "    began =", f"{KILL_CALLER}    began =")
    toy.edit("toystages/search.py", "    found = {}", "    (work.scratch / 'pid').write_text(PID)\n    found = {}")
    toy.edit("toystages/search.py", "import json\n", "import json\nimport os\n\nPID = str(os.getpid())\n")
    result = toy.build("--jobs", "2")
    assert result.status == 0, result.err
    assert "search: its worker process was killed by SIGKILL; it is tried again (1 of 1)" in result.err
    assert processes(toy) == []


KILL_CALLER = """    mark = Path(config.trace + '.mark')
    if item['width'] == 3 and not mark.exists():
        mark.touch()
        os.kill(int((work.scratch.parent.parent.parent / 'pid').read_text()), 9)
        time.sleep(30)
"""


def test_an_iterator_that_is_closed_early_ends_the_rest(toy: Toy) -> None:
    toy.edit("toystages/search.py", "    found = {}", f"{EARLY}    found = {{}}")
    result = toy.build("--jobs", "2", "search.seconds=0.05")
    assert result.status == 0, result.err
    assert json.loads((toy.root / FOUND).read_text())[5]["width"] == 5


EARLY = """
    for index, result in work.map("toystages.score.score", [{"width": 100 + each} for each in range(400)]):
        break
    work.map("toystages.score.score", [])  # of nothing
    assert list(work.map("toystages.score.score", [])) == []
    nobody = work.map("toystages.score.score", [{"width": 1000 + each} for each in range(400)])  # is never asked
    other = work.map("toystages.score.score", [{"width": 2000}])
    mixed = work.map("toystages.score.score", [{"width": 3000}])
    assert next(mixed)[1]["width"] == 3000 and next(other)[1]["width"] == 2000
"""


@pytest.mark.parametrize("way", ["SIGKILL", "SIGTERM"])
def test_a_build_that_is_killed_in_a_map_leaves_no_process(way: str, toy: Toy) -> None:
    words = [sys.executable, "-m", "pipelines.cli", "build", "--jobs", "2", "search.seconds=30"]
    build = subprocess.Popen(words, cwd=toy.root, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    while len(processes(toy)) < 4:  # the build, the stage and two items
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(build.pid, getattr(signal, way))
    build.wait(timeout=30)
    until = time.monotonic() + 10
    while processes(toy) and time.monotonic() < until:
        time.sleep(0.05)
    assert processes(toy) == []
    assert toy.build("--jobs", "2").status == 0


def test_scratch_outlives_a_kill_of_the_build(toy: Toy) -> None:
    toy.edit(SCORE, "    began =", "    (work.scratch / 'x').touch()\n    began =")
    words = [sys.executable, "-m", "pipelines.cli", "build", "--jobs", "1", "search.seconds=30"]
    build = subprocess.Popen(words, cwd=toy.root, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    while not (kept := list((toy.root / ".tapeout/scratch").glob("search/*/state/map/*/state/x"))):
        time.sleep(0.05)
    os.kill(build.pid, signal.SIGKILL)
    build.wait(timeout=30)
    assert kept[0].is_file()


def test_without_an_executor_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alone.py").write_text("def double(item, config):\n    return item * config\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    work = Workspace(tmp_path / "out", tmp_path / "scratch")
    with pytest.raises(StageError, match="parameter 'config'") as caught:
        list(work.map("alone.double", [1, 2]))
    assert "given={'config': ...}" in caught.value.hint
    work = Workspace(tmp_path / "out", tmp_path / "scratch", given={"config": 4})
    assert list(work.map("alone.double", [1, (2,)])) == [(0, 4), (1, [2, 2, 2, 2])]
    with pytest.raises(StageError, match=r"alone.double failed: TypeError"):
        list(work.map("alone.double", [{}]))


@pytest.mark.slow
def test_a_call_costs_little(toy: Toy) -> None:
    """0.6 ms on an idle machine, of which hundreds make a search."""
    toy.write(SCORE, "def score(item):\n    return item['width']\n")
    toy.edit("toystages/search.py", "import json\n", "import json\nimport time\n")
    toy.edit(
        "toystages/search.py",
        "    found = {}",
        "    list(work.map('toystages.score.score', items[:4]))\n    found = {}",
    )
    toy.edit("toystages/search.py", "    found = {}", "    began = time.monotonic()\n    found = {}")
    toy.edit(
        "toystages/search.py", "    assert sorted", "    work.metric('s', time.monotonic() - began)\n    assert sorted"
    )
    result = toy.build("search.count=1000", "--jobs", "1")
    assert result.status == 0, result.err
    assert measurements(result.summary) < [5.0]


def test_a_stage_is_not_ended_with_another_whose_items_its_process_could_have_served(toy: Toy) -> None:
    """Two stages begin while one process idles that has served an item of a third, which then ends before them."""
    toy.edit("toystages/score.py", "time.sleep(config.seconds)", 'time.sleep(config.seconds * item["width"])')
    toy.write(
        "toystages/slow.py",
        "import time\n\n\ndef gate(checkpoint, work):\n    time.sleep(1.0)\n    (work.out / 'a').write_text('a')\n\n\n"
        "def slow1(gate, work):\n    time.sleep(3.0)\n    (work.out / 'a').write_text('b')\n\n\n"
        "def slow2(gate, work):\n    slow1(gate, work)\n",
    )
    stages = "".join(
        f"  {name}: {{run: toystages.slow.{name}, needs: {{{need}}}}}\n"
        for name, need in (("gate", "checkpoint: load"), ("slow1", "gate: gate"), ("slow2", "gate: gate"))
    )
    pipeline = (toy.root / "conf/pipeline/main.yaml").read_text()
    toy.write("conf/pipeline/main.yaml", pipeline.rstrip("\n") + "\n" + stages)
    words = ["build", "search.count=2", "search.seconds=2.0", "executor.jobs=4", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words],
        cwd=toy.root,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert {node["status"] for node in json.loads(ended.stdout)["nodes"]} == {"built"}
