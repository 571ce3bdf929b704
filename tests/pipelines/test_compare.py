"""`tapeout compare`: what differs between two builds of the history."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.answers import AT_ONCE, Answered, interval, other_questions, paired, read_answers, sign_test
from pipelines.compared_metrics import compare_gates, compare_metrics
from pipelines.compared_words import value
from pipelines.sealed import read_sealed, write_sealed
from pipelines.summary import completed
from tests.pipelines.toy import Toy, make_toy

VALIDATE = '''
import json

from toystages.folder import Folder

TASKS = {"ocr": 40, "count": 20}


def validate(model: Folder, config, device, work):
    """With 8 bits all is right; with b bits, of the first 8 questions of ocr, 8 - b are not."""
    bits = int(model.text("graph/model.bin").split(" in ")[1].split("/")[0])
    lines = []
    for task, count in TASKS.items():
        for number in range(count):
            right = task == "count" or not number < 8 - bits
            answer = {"task": task, "question": f"{task} {number}?", "expected": "yes"}
            lines.append({**answer, "answer": "yes" if right else "no", "score": float(right), "tokens": [1]})
    (work.out / "answers.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    right = sum(line["score"] for line in lines if line["task"] == "ocr") / 40
    task = {"n": 40, "fp32": 1.0, "artifact": right, "retention": right, "flips": 1 - right}
    gate = {"metric": "retention", "task": "ocr", "value": right, "bound": 0.95, "kind": "min"}
    token = {"value": 2.0 * bits * device.budget, "low": bits * 1.0, "high": bits * 3.0}
    metrics = {
        "questions": {"seed": 7},
        "tasks": {"ocr": task},
        "fidelity": {"kl": (8 - bits) / 100},
        "size_bytes": bits * 2**20,
        "predicted": {"token_ms": token},
        "basis": {"token_ms": "toy"},
        "gates": [{**gate, "passed": right >= 0.95}],
    }
    (work.out / "metrics.json").write_text(json.dumps(metrics))
'''
GATES = "    gates: metrics.json\n"


def answering(root: Path) -> Toy:
    toy = make_toy(root)
    toy.write("toystages/validate.py", VALIDATE)
    toy.edit("conf/pipeline/main.yaml", GATES, GATES + "    answers: answers.jsonl\n")
    return toy


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """8 bits (named) and 4 bits were built, for a phone, a tablet that is the same, and a watch that is not."""
    toy = answering(tmp_path_factory.mktemp("compare") / "toy")
    assert toy.build("quantize=int8", "device=all", "--name", "before").status == 0
    assert toy.build("device=all").status == 1  # 36 of 40 are less than 95 %
    return toy


def compared(toy: Toy, *words: str) -> dict[str, Any]:
    result = toy.run("compare", "--json", *words)
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_figures_of_each_device(twice: Toy) -> None:
    found = compared(twice)
    assert (found["before"]["number"], found["after"]["number"]) == (1, 2)
    assert found["overrides"] == {"before": ["quantize=int8"], "after": []}
    assert [device["device"] for device in found["devices"]] == ["phone", "tablet", "watch"]
    phone, watch = ({row["metric"]: row for row in found["devices"][place]["metrics"]} for place in (0, 2))
    assert phone["tasks.ocr.retention"]["before"] == 1 and phone["tasks.ocr.retention"]["after"] == 0.9
    assert phone["tasks.ocr.retention"]["better"] is False and phone["size_bytes"]["better"] is True
    assert phone["fidelity.kl"]["change"] == pytest.approx(0.04) and phone["fidelity.kl"]["better"] is False
    token = phone["predicted.token_ms"]
    assert (token["before"], token["after"], token["predicted"]) == (16, 8, True)
    assert token["after_interval"] == [4, 12] and watch["predicted.token_ms"]["after"] == 16
    assert not any(name.startswith(("questions", "gates", "basis")) for name in phone)
    assert next(iter(phone)) == "tasks.ocr.artifact"  # the well-known first


def test_answers_question_by_question(twice: Toy) -> None:
    every, ocr, count = compared(twice)["devices"][0]["answers"]
    assert (every["task"], every["n"], ocr["task"], ocr["n"]) == (None, 60, "ocr", 40)
    assert (ocr["before"], ocr["after"], ocr["rose"], ocr["fell"]) == (1, 0.9, 0, 4)
    assert ocr["answers_changed"] == ocr["scores_changed"] == 0.1
    assert ocr["p"] == 2 * 0.5**4
    assert ocr["difference"] == pytest.approx(-0.1) and ocr["low"] < -0.1 < ocr["high"] <= 0
    assert (count["difference"], count["low"], count["high"], count["p"]) == (0, 0, 0, 1)


def test_gates_and_nodes_that_differ(twice: Toy) -> None:
    found = compared(twice)
    (gate,) = found["devices"][0]["gates"]
    assert (gate["before"]["passed"], gate["after"]["passed"], gate["after"]["value"]) == (True, False, 0.9)
    nodes = {node["stage"]: node for node in found["nodes"] if "watch" not in node["devices"]}
    everywhere = {node["stage"]: node for node in found["nodes"]}
    assert "load" not in everywhere and everywhere["quantize"]["why"] == ["quantize.bits 8 -> 4"]
    assert nodes["convert"]["devices"] == ["phone", "tablet"] and nodes["convert"]["why"] == ["input model changed"]
    assert nodes["convert"]["before"]["digest"] != nodes["convert"]["after"]["digest"]
    assert nodes["package"]["after"]["key"] is None and nodes["package"]["after"]["digest"] is None
    assert nodes["package"]["why"] == ["no result in build 2"]


def test_the_terminal_tells_it_once_for_devices_that_share(twice: Toy) -> None:
    out = twice.run("compare", "before", "last").out
    assert "overrides  only before: quantize=int8" in out
    assert out.count("phone, tablet, watch\n") == 1
    row = next(line for line in out.splitlines() if line.startswith("  ocr"))
    assert row.split("  ")[1:4] and "100.0 % -> 90.0 %" in row and "+0 -4" in row and "p 0.125" in row
    assert "phone, tablet, watch: retention of ocr: passed with 1 -> FAILED with 0.9; at least 0.95" in out
    tablet = next(line for line in out.splitlines() if line.startswith("tablet"))
    assert "8.00 MiB -> 4.00 MiB" in tablet and "16 ms -> 8 ms" in tablet
    assert "* predicted, not measured" in out
    assert "quantize.bits 8 -> 4" in out


def test_a_build_and_itself(twice: Toy) -> None:
    out = twice.run("compare", "1", "before").out
    assert "every result is the same" in out and "gates: the same verdicts" in out and "->" not in out
    assert all(not row["change"] for device in compared(twice, "1", "1")["devices"] for row in device["metrics"])


def test_the_page_holds_itself_together(twice: Toy, tmp_path: Path) -> None:
    result = twice.run("compare", "--html", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert result.status == 0 and "page.html" in result.err
    words = (
        "100.0 % → 90.0 % <small>within chance<",
        "0 → 0.04 <small>worse<",
        "<small>better<",
        "quantize.bits 8 → 4",
        "prefers-color-scheme",
    )
    for part in (*words, "phone, tablet, watch", "passed with 1 → FAILED with 0.9"):
        assert part in page, part
    assert "<script" not in page and "http" not in page and "src=" not in page
    rows = [json.dumps(row) for device in compared(twice)["devices"] for row in device["metrics"]]
    assert page.count("predicted.token_ms") == sum("token_ms" in row for row in rows)


def test_other_devices_and_other_questions(toy: Toy) -> None:
    shutil.rmtree(toy.root)
    toy = answering(toy.root)
    assert toy.build("device=[phone]", "quantize=int8").status == 0
    toy.edit("toystages/validate.py", "{number}?", "number {number}?")
    assert toy.build("quantize=int8").status == 0
    phone, tablet = compared(toy)["devices"]
    assert phone["answers"] == [] and "number 1 was 'ocr ocr 0? yes' before" in phone["unpaired"]
    assert tablet["before"] == "not among the devices" and tablet["gates"] == []
    out = toy.run("compare").out
    assert "tablet: not compared; before: not among the devices" in out and "answers not compared: other" in out


def test_builds_for_other_devices(toy: Toy, tmp_path: Path) -> None:
    """What does not depend on the device is the same result, whoever it was for and whatever the node is called."""
    for device in ("phone", "watch", "phone,watch"):
        assert toy.build(f"device=[{device}]").status == 0
    found = compared(toy, "1", "2")
    assert [(node["stage"], node["devices"], node["why"]) for node in found["nodes"]] == [
        ("convert", ["phone"], []),
        ("package", ["phone"], []),
        ("convert", ["watch"], []),
        ("package", ["watch"], []),
    ]  # the validation came out the same
    out = toy.run("compare", "1", "2", "--html", str(tmp_path / "page.html")).out
    assert "gates: not compared: no device is in both builds" in out and "quantize" not in out
    assert "<p>Not compared: no device is in both builds.</p>" in (tmp_path / "page.html").read_text()
    assert [(node["after"] or node["before"])["node"] for node in compared(toy, "1", "3")["nodes"]] == [
        "convert-watch",
        "package-watch",
    ]
    assert "gates: the same verdicts" in toy.run("compare", "1", "3").out
    assert toy.build("device=[tablet,watch]", "quantize=int8").status == 0
    nodes = {node["stage"]: node for node in compared(toy, "3", "4")["nodes"] if node["before"] and node["after"]}
    assert nodes["quantize"]["why"] == ["quantize.bits 4 -> 8"] and nodes["quantize"]["devices"] == ["watch"]
    assert sum(node["stage"] == "quantize" for node in compared(toy, "3", "4")["nodes"]) == 1


def test_what_gc_has_removed_is_named_with_what_to_build(twice: Toy, tmp_path: Path) -> None:
    shutil.copytree(twice.root, tmp_path / "toy")
    toy = Toy(tmp_path / "toy")
    assert toy.run("gc", "--keep", "1", "--unname", "before").status == 0
    result = toy.run("compare", "1", "2")
    assert result.status == 1
    assert "build 1, " in result.err and "metrics.json of validate-phone is not in the store any more" in result.err
    assert "make it again: tapeout build quantize=int8 'device=[phone,tablet,watch]'" in result.err
    assert toy.build("quantize=int8", "device=all").status == 0
    assert toy.run("compare", "1", "2").status == 0  # the same results are there again


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["befor"], ["no build is called 'befor'", "did you mean 'before'?"]),
        (["7"], ["there is no build 7", "1, 2"]),
        (["last~2"], ["last~2: there are 2 builds", "last~1"]),
        (["1", "2", "3"], ["takes two builds, not 3"]),
        (["--keep", "2"], ["has no use for --keep"]),
    ],
)
def test_mistakes(words: list[str], said: list[str], twice: Toy) -> None:
    result = twice.run("compare", *words)
    assert result.status == 2
    assert all(each in result.err for each in said), result.err


def test_too_little_built_yet(toy: Toy) -> None:
    assert "nothing has been built yet" in toy.run("compare").err
    assert toy.build().status == 0
    assert "last~1: there is only one build" in toy.run("compare").err
    assert toy.run("build", "--html", "x").status == 2


def test_an_older_versions_build(twice: Toy, tmp_path: Path) -> None:
    shutil.copytree(twice.root, tmp_path / "toy")
    path = tmp_path / "toy/.tapeout/builds/000001.json"
    entry = read_sealed(path)
    assert entry is not None
    write_sealed(path, {key: each for key, each in entry.items() if key not in ("devices", "stages")})
    result = Toy(tmp_path / "toy").run("compare", "1", "2")
    assert result.status == 2 and "did not note what it can be compared by" in result.err
    assert "build it again: tapeout build quantize=int8" in result.err
    last = read_sealed(tmp_path / "toy/.tapeout/last.json")
    assert last is not None and set(last["devices"]) == {"phone", "tablet", "watch"} and last["build"] == 2
    assert last["shared"] == {"devices": 3, "unshared": 15, "saved": 6}
    older = {key: each for key, each in last.items() if key not in ("shared", "devices")}
    older["nodes"] = [{key: each for key, each in node.items() if key != "needs"} for node in last["nodes"]]
    filled = completed(older)
    assert filled["shared"] is None and filled["nodes"][1]["needs"] == [] and filled["metrics"] == last["metrics"]


def test_the_exact_test_is_mcnemars() -> None:
    from scipy.stats import binomtest

    for rose, fell in [(0, 0), (1, 0), (3, 9), (9, 3), (40, 61), (0, 2000)]:
        expected = binomtest(rose, rose + fell, 0.5).pvalue if rose + fell else 1.0
        assert sign_test(rose, fell) == pytest.approx(expected, rel=1e-9), (rose, fell)


def test_the_interval_is_that_of_the_mean() -> None:
    differences = [0.0] * 900 + [1.0] * 60 + [-1.0] * 40
    low, high = interval(differences)
    half = 1.96 * math.sqrt((0.1 - 0.02**2) / 1000)
    assert low == pytest.approx(0.02 - half, abs=0.002) and high == pytest.approx(0.02 + half, abs=0.002)
    assert interval(differences) == (low, high)


def test_many_graded_scores_take_little_memory() -> None:
    """As many values as questions: all resamples at once were 2000 times 20,000 counts, 320 MB."""
    import tracemalloc

    differences = [math.sin(number) for number in range(20_000)]
    tracemalloc.start()
    low, high = interval(differences)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 8 * AT_ONCE
    half = 1.96 * math.sqrt(0.5 / 20_000)
    mean = sum(differences) / 20_000
    assert low == pytest.approx(mean - half, abs=0.001) and high == pytest.approx(mean + half, abs=0.001)


def test_drawing_in_pieces_gives_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = [0.0] * 90 + [0.5] * 6 + [-1.0] * 4
    whole = interval(differences)
    monkeypatch.setattr("pipelines.answers.AT_ONCE", 3 * 7)
    assert interval(differences) == whole


def test_the_same_words_about_another_image_are_another_question() -> None:
    line = {"task": "own", "question": "What is this?", "expected": "a cat", "answer": "a dog", "score": 0.0}
    one, other, none = (
        read_answers(json.dumps(line | extra).encode(), "answers.jsonl")
        for extra in ({"image": "0" * 16}, {"image": "1" * 16}, {})
    )
    assert other_questions(one, one) == other_questions(none, none) == ""
    assert other_questions(one, other) == "other images: that of number 1, 'own What is this? a cat', is another one"
    assert "does not say which images" in other_questions(none, one)


def test_graded_scores_count_by_their_direction() -> None:
    old = [Answered(("q", str(number)), "ocr", "a", 0.5) for number in range(4)]
    new = [Answered(each.asked, "ocr", "b", score) for each, score in zip(old, (0.7, 0.5, 0.9, 0.4), strict=True)]
    (found,) = paired(old, new)
    assert (found.rose, found.fell, found.p) == (2, 1, 1.0)
    assert found.answers_changed == 1 and found.scores_changed == 0.75 and found.difference == pytest.approx(0.125)


def test_figures_that_only_one_build_has() -> None:
    rows = {row["metric"]: row for row in compare_metrics({"a": 1, "x": {"y": True}}, {"b": {"c": 2.5}, "n": math.nan})}
    assert rows["a"]["after"] is None and rows["b.c"]["before"] is None and rows["a"]["change"] is None
    assert set(rows) == {"a", "b.c"}


def test_gates_with_two_bounds_of_one_metric() -> None:
    low = {"metric": "kl", "task": None, "kind": "max", "bound": 1.0, "value": 0.5, "passed": True}
    assert compare_gates([low, {**low, "bound": 2.0}], [low, {**low, "bound": 2.0}]) == []
    (found,) = compare_gates([low, {**low, "bound": 2.0}], [low])
    assert found["before"]["bound"] == 2.0 and found["after"] is None


def test_units() -> None:
    assert value("size_bytes", 3 * 2**20) == "3.00 MiB" and value("predicted.peak_memory_mib", 812.25) == "812.2 MiB"
    assert value("tasks.ocr.retention", 0.9512) == "95.1 %" and value("predicted.token_ms", 1.23456) == "1.235 ms"
    assert value("risks", 3) == "3" and value("fidelity.kl", 0.00123456) == "0.001235"
