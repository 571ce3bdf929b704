"""What runs when: cores, memory, failures, killed workers, and how a build is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.workers import free_memory
from tests.pipelines.toy import Result, Toy, environment

STAGE = """
import json
import os
import time
from pathlib import Path


def wait(config, work):
    began = time.monotonic()
    print("one line of", config.name)
    while time.monotonic() < began + config.seconds:
        time.sleep(0.01)
    trace = Path(config.trace)
    trace.mkdir(exist_ok=True)
    (trace / f"{config.name}-{os.getpid()}-{began}.json").write_text(json.dumps([began, time.monotonic()]))
    (work.out / "name").write_text(config.name)
"""


class Waits(Toy):
    """A project of stages a, b, c, ... that wait; each pair that ran at the same time is known afterwards."""

    def lay(self, *resources: str, code: str = "", seconds: float = 0.3) -> None:
        names = "abcdefgh"[: len(resources)]
        stages = "\n".join(
            f"  {name}: {{run: toystages.wait.wait, config: {name}, resources: {{{each}}}}}"
            for name, each in zip(names, resources, strict=True)
        )
        self.write("conf/pipeline/waits.yaml", f"stages:\n{stages}\n")
        for name in names:
            self.write(f"conf/{name}/default.yaml", f"name: {name}\ntrace: {self.root}/trace\nseconds: {seconds}\n")
        choices = ", ".join(f"{{{name}: default}}" for name in names)
        self.write(
            "conf/config.yaml",
            f"defaults: [{{pipeline: waits}}, {{executor: local}}, {{tracking: none}}, {choices}, _self_]\n",
        )
        self.write("toystages/wait.py", STAGE.replace('    print("', f'    {code}\n    print("') if code else STAGE)

    def spans(self) -> dict[str, tuple[float, float]]:
        paths = (self.root / "trace").glob("*.json")
        return {path.name.partition("-")[0]: tuple(json.loads(path.read_text())) for path in paths}

    def overlaps(self) -> set[str]:
        """The pairs of stages that ran at the same time, each as its two letters."""
        spans = self.spans()
        return {
            one + other
            for one, (began, ended) in spans.items()
            for other, (start, stop) in spans.items()
            if one < other and began < stop and start < ended
        }


@pytest.fixture
def waits(toy: Toy) -> Waits:
    return Waits(toy.root)


ROOM = {
    "as many as cores": (["", "", ""], ["--jobs", "3"], {"ab", "ac", "bc"}),
    "one at a time": (["", ""], ["--jobs", "1"], set()),
    "a stage that takes two cores": (["cpus: 2", "", ""], ["--jobs", "2"], {"bc"}),
    "more cores than there are": (["cpus: 9", ""], ["--jobs", "2"], set()),
    "memory for one": (["memory_mib: 60", "memory_mib: 60"], ["--jobs", "2", "executor.memory_mib=100"], set()),
    "memory for both": (["memory_mib: 60", "memory_mib: 40"], ["--jobs", "2", "executor.memory_mib=100"], {"ab"}),
    "memory for the small one": (
        ["memory_mib: 60", "memory_mib: 60", "memory_mib: 30"],
        ["--jobs", "3", "executor.memory_mib=100"],
        {"ac", "bc"},
    ),
}


@pytest.mark.parametrize("case", ROOM)
def test_what_runs_together_fits_into_cores_and_memory(case: str, waits: Waits) -> None:
    resources, words, expected = ROOM[case]
    waits.lay(*resources, seconds=2 if expected else 0.3)  # the second worker's start takes its time
    assert waits.build(*words).status == 0
    assert waits.overlaps() <= expected
    assert bool(waits.overlaps()) == bool(expected)


def test_memory_may_grow_with_the_inputs(toy: Toy) -> None:
    toy.write("data/model/weights.txt", "x" * (3 << 20))
    toy.edit(
        "conf/pipeline/pair.yaml",
        'sources: {path: ["*.txt"]}}',
        'sources: {path: ["*.txt"]},\n         resources: {memory_mib: 10, memory_per_input: "much"}}',
    )
    result = toy.build("pipeline=pair")
    assert (result.status, "resources.memory_per_input is 'much'" in result.err) == (2, True)
    toy.edit("conf/pipeline/pair.yaml", '"much"', "2.5")
    assert toy.build("pipeline=pair").status == 0


WRONG = {
    "cpus: 0": "resources.cpus is 0, and must be a number from 1",
    "cpus: 1.5": "resources.cpus is 1.5",
    "memory_mib: -1": "resources.memory_mib is -1",
    "memory: 3": "unknown key 'memory'",
}


@pytest.mark.parametrize("text", WRONG)
def test_resources_that_make_no_sense_are_refused(text: str, waits: Waits) -> None:
    waits.lay(text)
    result = waits.build()
    assert result.status == 2
    assert WRONG[text] in result.err


def test_resources_are_no_part_of_the_key(waits: Waits) -> None:
    waits.lay("")
    assert waits.build().nodes == {"a": "built"}
    waits.lay("cpus: 2, memory_mib: 7")
    assert waits.build().nodes == {"a": "cached"}


def test_there_is_free_memory() -> None:
    assert 16 < free_memory() < 1 << 30


def test_the_peak_of_memory_is_told(waits: Waits) -> None:
    waits.lay("", "", code="held = bytearray(80 << 20) if config.name == 'a' else b''; held[:] = b'1' * len(held)"
              " if held else b''")  # fmt: skip
    result = waits.build("--jobs", "1")
    peak = {node["name"]: node["memory_mib"] for node in result.summary["nodes"]}
    assert peak["a"] > 80
    assert peak["b"] < peak["a"]


GOING = {
    (): {"a": "failed", "b": "built"},
    ("--keep-going",): {"a": "failed", "b": "built"},
    ("--no-keep-going",): {"a": "failed", "b": "skipped"},
}


@pytest.mark.parametrize("words", GOING)
def test_after_a_failure_the_rest_is_finished_or_not(words: tuple[str, ...], waits: Waits) -> None:
    waits.lay("", "", code="assert config.name != 'a'")
    result = waits.build("--jobs", "1", *words)
    assert result.status == 1
    assert result.nodes == GOING[words]
    if "--no-keep-going" in words:
        assert "b                            skipped  stopped after a failed" in result.err


FAILING = """runs = Path(config.trace).with_name("b-runs")
    if config.name == "b":
        runs.touch()
        time.sleep(3)  # while the other fails
    while config.name == "a" and not runs.exists():
        time.sleep(0.01)
    assert config.name != "a"
"""


def test_what_runs_when_another_fails_is_finished_and_kept(waits: Waits) -> None:
    waits.lay("", "", "", code=FAILING)
    result = waits.build("--jobs", "2", "--no-keep-going")
    assert result.nodes == {"a": "failed", "b": "built", "c": "skipped"}
    waits.lay("", "", "")
    assert waits.build().nodes["a"] == "built"


def test_the_end_of_the_log_is_shown_with_a_failure(waits: Waits) -> None:
    waits.lay("", code="[print('line', each) for each in range(40)]; 1 / 0")
    result = waits.build()
    log = waits.root / ".tapeout/logs/a.log"
    assert f"the end of its log, {log}:\n  | " in result.err
    assert "| ZeroDivisionError: division by zero" in result.err
    assert "| line 39" in result.err
    assert "| line 3\n" not in result.err
    assert "line 3\n" in log.read_text()


def test_an_error_of_ours_shows_what_the_stage_said_and_no_traceback(waits: Waits) -> None:
    waits.lay(
        "", code="from pipelines.errors import StageError; print('as far as here'); raise StageError('no', hint='h')"
    )
    result = waits.build()
    assert "  no\n  h\n  the end of its log" in result.err
    assert "| as far as here" in result.err
    assert "Traceback" not in result.err


DIES = "import signal; seen = work.scratch / 'seen'; n = int(seen.read_text()) if seen.exists() else 0; "
ONCE = DIES + "seen.write_text(str(n + 1)); n < {} and os.kill(os.getpid(), signal.SIGKILL)"


def test_a_node_whose_worker_was_killed_is_tried_again(waits: Waits) -> None:
    waits.lay("", code=ONCE.format(1))
    result = waits.build()
    assert result.status == 0
    assert "a: its worker process was killed by SIGKILL; it is tried again (1 of 1)" in result.err


def test_a_node_whose_worker_is_killed_again_and_again_fails(waits: Waits) -> None:
    waits.lay("", "", code=ONCE.format(9) + " if config.name == 'a' else None")
    result = waits.build("executor.retries=2")
    assert result.nodes == {"a": "failed", "b": "built"}
    assert "tried again (2 of 2)" in result.err
    assert "killed by SIGKILL\n  if memory ran out: --jobs 1" in result.err


def test_a_second_try_has_the_machine_to_itself(waits: Waits) -> None:
    waits.lay("", "", "", "", code=ONCE.format(1) + " if config.name == 'a' else None")
    assert waits.build("--jobs", "2").status == 0
    assert not [pair for pair in waits.overlaps() if "a" in pair]


def start(toy: Toy, *words: str) -> subprocess.Popen[str]:
    """Start a build in a process group of its own."""
    command = [sys.executable, "-m", "pipelines.cli", "build", *words]
    return subprocess.Popen(
        command, cwd=toy.root, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def await_line(process: subprocess.Popen[str], begin: str) -> None:
    assert process.stderr is not None
    assert any(line.startswith(begin) for line in process.stderr), f"no line begins with {begin}"


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The process ids of a build's workers."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def stuck(waits: Waits) -> Iterator[tuple[Waits, subprocess.Popen[str]]]:
    """A build of which a has been built, and b and c run for a minute."""
    waits.lay("cpus: 2", "", "", code="config.name != 'a' and not os.path.exists('awake') and time.sleep(60)")
    process = start(waits, "--jobs", "2")
    await_line(process, "c ")
    time.sleep(0.3)
    yield waits, process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)])
def test_a_build_that_is_stopped_ends_cleanly(
    number: signal.Signals, group: bool, stuck: tuple[Waits, subprocess.Popen[str]]
) -> None:
    """group: as the terminal does it on Ctrl-C; else the build's process alone is told."""
    waits, process = stuck
    pids = workers(process)
    assert len(pids) == 2
    (os.killpg if group else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.strip().splitlines()[-1] == "tapeout: stopped; what was finished is kept"
    assert "Traceback" not in err
    assert not alive(pids)
    assert [row.split()[:2] for row in waits.run("plan").out.splitlines()[:3]] == [
        ["a", "cached"],
        ["b", "run"],
        ["c", "run"],
    ]


def test_workers_do_not_outlive_a_killed_build(stuck: tuple[Waits, subprocess.Popen[str]]) -> None:
    _, process = stuck
    pids = workers(process)
    process.kill()
    process.wait()
    limit = time.monotonic() + 30
    while alive(pids) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not alive(pids)


def test_a_worker_that_is_killed_from_outside_costs_only_its_node(stuck: tuple[Waits, subprocess.Popen[str]]) -> None:
    waits, process = stuck
    waits.write("awake", "")  # new workers do not wait
    for pid in workers(process):
        os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert err.count("killed by SIGKILL; it is tried again") == 2


def sweep(toy: Toy, *words: str) -> Result:
    return toy.run("build", "-m", "--json", *words)


def test_a_sweep_builds_every_combination(toy: Toy) -> None:
    result = sweep(toy, "pipeline=pair", "quantize=int4,int8", "quantize.group_size=range(32,65,32)")
    assert result.status == 0
    runs = result.summary["runs"]
    assert [run["overrides"] for run in runs] == [
        f"pipeline=pair quantize={name} quantize.group_size={size}" for name in ("int4", "int8") for size in (32, 64)
    ]
    assert [[node["status"] for node in run["nodes"]] for run in runs] == [
        ["built", "built"],
        ["cached", "built"],
        ["cached", "built"],
        ["cached", "built"],
    ]
    assert toy.files()["build/quantize/codes.txt"] == b"0.25 0.5 in 8/64"
    assert sweep(toy, "pipeline=pair", "quantize=glob(int*)").status == 0


def test_a_sweep_ends_with_a_table_that_compares(toy: Toy) -> None:
    result = toy.run("build", "-m", "validate.noise=0,0.7")
    assert result.status == 1
    table = result.out.split("\n\n")[-1].splitlines()
    assert table[0].split() == ["configuration", "device", "size", "lowest", "retention", "gates"]
    assert [line.split()[0] for line in table[1:]] == ["validate.noise=0"] * 2 + ["validate.noise=0.7"] * 2
    assert table[-1].endswith("0 of 1 passed")


def test_a_sweep_is_refused_as_a_whole(toy: Toy) -> None:
    result = sweep(toy, "quantize=int4,int5")
    assert result.status == 2
    assert "quantize=int5: there is no conf/quantize/int5.yaml" in result.err
    assert not (toy.root / "artifacts").exists()


@pytest.mark.parametrize("override", ["quantize=int4,int8", "quantize.bits=3,4", "quantize.bits=range(2,4)"])
def test_several_values_without_m_are_an_error_that_names_m(override: str, toy: Toy) -> None:
    result = toy.build(override)
    assert result.status == 2
    assert f"{override}: one value is needed\n  to build each: tapeout build -m {override}" in result.err
