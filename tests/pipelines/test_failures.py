"""What goes wrong for one node, and what is printed then: the other nodes finish, and --json prints one document."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines.toy import Toy, add_dvc, environment

ONE = "device=[phone]"
BEGIN = "def load(config, work):\n"


def loads(toy: Toy, code: str) -> None:
    """Let the stage `load` begin with other code, indented as in a function."""
    toy.edit("toystages/load.py", BEGIN, f"import os, sys, threading, time\n\n\n{BEGIN}{code}\n")


def build(toy: Toy, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `tapeout build --json` in a process of its own."""
    command = [sys.executable, "-m", "pipelines.cli", "build", "--json", ONE, *words]
    return subprocess.run(command, cwd=toy.root, env=environment(), capture_output=True, text=True, timeout=60)


LATE = """
    for i in range(60):  # each is stored before zz is looked at again
        (work.out / f"{i:05}").write_text(str(i))
    file = open(work.out / "zz", "w")
    def go():
        while True:
            file.write("more")
            file.flush()
            time.sleep(0.001)
    threading.Thread(target=go, daemon=True).start()
"""


def test_a_file_that_is_still_being_written_is_not_taken_in(toy: Toy) -> None:
    toy.write("conf/pipeline/pair.yaml", (toy.root / "conf/pipeline/pair.yaml").read_text() + "  other:"
              " {run: toystages.load.other, config: model}\n")  # fmt: skip
    loads(toy, LATE)
    toy.write("toystages/load.py", (toy.root / "toystages/load.py").read_text()
              + "\n\ndef other(config, work):\n    (work.out / 'x').write_text('1')\n")  # fmt: skip
    result = toy.build("pipeline=pair")
    assert result.nodes == {"load": "failed", "other": "built", "quantize": "skipped"}
    assert "zz was still being written when the stage had returned" in result.err
    assert toy.run("verify").out.strip() == "nothing is damaged"


GONE = """
    with open(work.out / "great", "wb") as great:
        great.truncate(256 << 20)  # which takes a while to be read
    (work.out / "empty").mkdir()
    for i in range(500):
        (work.out / f"small{i:03}").write_text("x")
    def go():
        while (work.out / "empty").exists():  # it is removed where the output begins to be taken in
            time.sleep(0.001)
        for i in range(500):
            (work.out / f"small{i:03}").unlink(missing_ok=True)
            time.sleep(0.001)
    threading.Thread(target=go, daemon=True).start()
"""


def test_a_file_that_goes_away_fails_its_node_alone(toy: Toy) -> None:
    loads(toy, GONE)
    result = toy.build(ONE)
    assert result.status == 1
    assert result.nodes["load"] == "failed"
    assert result.nodes["package-phone"] == "skipped"


def test_an_input_that_goes_away_fails_its_node_alone(toy: Toy) -> None:
    toy.edit("conf/pipeline/pair.yaml", "needs: {checkpoint: load}}",
             "needs: {checkpoint: load}, sources: {extra: file}}")  # fmt: skip
    toy.edit("toystages/schema.py", "    group_size: int\n", "    group_size: int\n    extra: str\n")
    toy.edit("conf/quantize/int4.yaml", "bits: 4\n", "bits: 4\nextra: data/extra\n")
    toy.write("data/extra", "1")
    loads(toy, "    os.path.exists('data/extra') and os.unlink('data/extra')")
    result = toy.build("pipeline=pair")
    assert (result.status, result.nodes) == (1, {"load": "built", "quantize": "failed"})
    assert "data/extra" in result.err


GATES = {
    "{}": "it must hold",
    "[]": "it must hold",
    '{"gates": {}}': "it must hold",
    '{"gates": [1]}': "a gate is 1, and must be a mapping",
    '{"gates": [{"metric": "a", "value": 1, "bound": 1, "kind": "min", "passed": "no"}]}': "must be true or false",
    '{"gates": [{"metric": "a", "value": NaN, "bound": 1, "kind": "min", "passed": true}]}': "finite number or null",
    '{"gates": [{"metric": "a", "value": 1, "bound": "x", "kind": "min", "passed": true}]}': "a finite number",
    '{"gates": [{"metric": "a", "value": 1, "bound": 1, "kind": "most", "passed": true}]}': "'min' or 'max'",
}


@pytest.mark.parametrize("text", GATES)
def test_gates_that_make_no_sense_fail_their_node(text: str, toy: Toy) -> None:
    toy.edit("toystages/validate.py", "json.dumps(metrics)", repr(text))
    result = toy.build(ONE)
    assert (result.status, result.nodes["validate"]) == (1, "failed")
    assert GATES[text] in result.err


ODD = """
    {"gates": [], "tasks": {"a": {"retention": "x", "n": [1]}, "b": 3, "c": {"retention": NaN}}, "parity": 3,
     "size_bytes": "big"}
"""


def test_other_metrics_may_be_odd(toy: Toy) -> None:
    toy.edit("toystages/validate.py", "json.dumps(metrics)", repr(ODD))
    result = toy.run("build", "-m", ONE, "validate.noise=0,0.1")
    assert (result.status, "0 of 0 passed" in result.out) == (0, True)
    assert toy.run("report").status == 0
    assert "NaN" not in toy.build(ONE).out


def test_a_known_result_without_the_gates_that_are_asked_for_is_none(toy: Toy) -> None:
    assert toy.build(ONE).status == 0
    toy.edit("conf/pipeline/main.yaml", "gates: metrics.json", "gates: other.json")
    assert "validate" in [line.split()[0] for line in toy.run("plan", ONE).out.splitlines() if "  run " in line]
    result = toy.build(ONE)
    assert (result.status, result.nodes["validate"]) == (1, "failed")
    toy.edit("conf/pipeline/main.yaml", "gates: other.json", "gates: metrics.json")
    assert toy.build(ONE).nodes["validate"] == "cached"


REMOVED = {
    "a module": "if os.path.exists('toystages/load.py'): os.unlink('toystages/load.py')",
    "a file of conf": "if os.path.exists('conf/quantize/int4.yaml'): os.unlink('conf/quantize/int4.yaml')",
}


@pytest.mark.parametrize("case", REMOVED)
def test_what_goes_away_at_the_end_of_a_build_is_told_beside_its_summary(case: str, toy: Toy) -> None:
    add_dvc(toy)
    toy.edit(
        "toystages/package.py",
        "def package(model: Folder, validation: Folder, device, work):",
        f"import os\n\n\ndef package(model: Folder, validation: Folder, device, work):\n    {REMOVED[case]}",
    )
    result = toy.build()
    assert len(result.nodes) == 6
    assert set(result.nodes.values()) == {"built"}
    if result.status:
        assert result.summary["unrecorded"]
        assert "put it back and build again" in result.err


def test_numbers_that_json_has_no_words_for_are_null(toy: Toy) -> None:
    loads(toy, "    work.metric('a', float('nan')); work.metric('b', float('inf')); work.metric('c', 1)")
    result = toy.build(ONE)
    assert "NaN" not in result.out
    assert "Infinity" not in result.out
    values = {each["name"]: each["value"] for each in result.summary["measurements"]["load"]}
    assert values == {"a": None, "b": None, "c": 1}


def test_json_alone_reaches_standard_output(toy: Toy) -> None:
    text = "import os\nprint('hello')\nos.system('echo from a child')\n"
    toy.write("toystages/schema.py", text + (toy.root / "toystages/schema.py").read_text())
    done = build(toy, "pipeline=pair")
    assert done.returncode == 0
    assert json.loads(done.stdout)["passed"]
    assert "hello" in done.stderr
    assert "from a child" in done.stderr


BIG = """
    from concurrent.futures import ThreadPoolExecutor
    def go(i):
        for _ in range(100):
            work.progress(1, 1, "x" * 20000)
    list(ThreadPoolExecutor(4).map(go, range(4)))
"""


def test_threads_may_report_at_the_same_time(toy: Toy) -> None:
    loads(toy, BIG)
    assert toy.build("pipeline=pair").status == 0


def test_a_worker_that_sends_nonsense_is_lost(toy: Toy) -> None:
    loads(toy, "    class Odd(str):\n        def __reduce__(self):\n            return int, ('x',)\n"
          "    work.progress(1, 1, Odd())\n    time.sleep(30)")  # fmt: skip
    result = toy.build("pipeline=pair", "executor.retries=0")
    assert result.nodes == {"load": "failed", "quantize": "skipped"}
    assert "its worker process sent what cannot be read" in result.err


def children(mark: str) -> list[int]:
    """The processes whose command has `mark` in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [int(path.parent.name)] if mark.encode() in path.read_bytes().split(b"\0") else []
        except OSError:
            continue
    return found


def awaited(mark: str, there: bool) -> bool:
    """Wait until processes with `mark` are there, or are not any more."""
    limit = time.monotonic() + 15
    while bool(children(mark)) != there and time.monotonic() < limit:
        time.sleep(0.05)
    return bool(children(mark)) == there


def test_what_a_stage_has_started_ends_with_a_stopped_build(toy: Toy) -> None:
    mark = f"{600 + os.getpid()}.25"
    loads(toy, f"    import subprocess\n    subprocess.run(['sleep', '{mark}'])")
    command = [sys.executable, "-m", "pipelines.cli", "build", ONE]
    process = subprocess.Popen(command, cwd=toy.root, env=environment(), stderr=subprocess.DEVNULL)
    assert awaited(mark, there=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 143
    assert awaited(mark, there=False)


def test_what_a_stage_has_started_ends_with_its_worker(toy: Toy) -> None:
    mark = f"{600 + os.getpid()}.5"
    loads(toy, f"    import signal, subprocess\n    subprocess.Popen(['sleep', '{mark}'])\n"
          "    os.kill(os.getpid(), signal.SIGKILL)")  # fmt: skip
    assert toy.build("pipeline=pair", "executor.retries=0").nodes["load"] == "failed"
    assert awaited(mark, there=False)


def test_an_error_without_a_text_is_a_failure(toy: Toy) -> None:
    loads(toy, "    from pipelines.errors import StageError\n    (work.out / 'x').write_text('1')\n"
          "    raise StageError('')")  # fmt: skip
    result = toy.build("pipeline=pair")
    assert (result.status, result.nodes["load"]) == (1, "failed")
    assert "StageError" in result.err


SECOND = """  extra:
    run: toystages.package.package
    needs: {model: convert, validation: validate}
    per: device
    device: true
    bundle: true
"""


def test_two_stages_that_make_bundles_are_refused(toy: Toy) -> None:
    toy.write("conf/pipeline/main.yaml", (toy.root / "conf/pipeline/main.yaml").read_text() + SECOND)
    result = toy.build(ONE)
    assert result.status == 2
    assert "stages package and extra both make bundles" in result.err


@pytest.mark.parametrize("name", ["config", "device", "work"])
def test_parameters_that_every_stage_has_take_no_artifact(name: str, toy: Toy) -> None:
    toy.edit("conf/pipeline/pair.yaml", "{checkpoint: load}", f"{{{name}: load}}")
    result = toy.build("pipeline=pair")
    assert result.status == 2
    assert f"needs: '{name}' is what a stage is given beside its inputs" in result.err


def test_an_error_in_the_schemas_names_their_module(toy: Toy) -> None:
    toy.edit("toystages/schema.py", "SCHEMAS = {", "SCHEMAS = = {")
    result = toy.build(ONE)
    assert result.status == 2
    assert "toystages.schema.SCHEMAS cannot be imported: SyntaxError: invalid syntax" in result.err


def test_an_error_in_a_check_names_it(toy: Toy) -> None:
    toy.write("toystages/checks.py", "def check(config, device):\n    return 1 / 0\n")
    toy.edit("conf/pipeline/pair.yaml", "config: quantize,", "config: quantize, check: toystages.checks.check,")
    result = toy.build("pipeline=pair")
    assert result.status == 2
    assert "toystages.checks.check failed: ZeroDivisionError: division by zero" in result.err


def test_a_node_says_that_its_result_is_lost(toy: Toy) -> None:
    import shutil

    assert toy.build("pipeline=pair").status == 0
    shutil.rmtree(toy.root / ".tapeout/cache")
    shutil.rmtree(toy.root / "artifacts/build/load")
    result = toy.build("pipeline=pair")
    assert result.nodes["load"] == "built"
    assert result.why["load"] == "its result is not in the store"


def test_a_file_name_that_is_not_utf_8_is_refused(toy: Toy) -> None:
    loads(toy, "    open(os.fsencode(work.out) + b'/a\\xff', 'w').close()")
    result = toy.build("pipeline=pair")
    assert result.nodes["load"] == "failed"
    assert "left 'a\\udcff', and a file's name must be UTF-8" in result.err
