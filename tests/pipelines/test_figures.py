"""What a stage has to show: its summary, its figures, and the gates of one that is one for all devices."""

import json
from pathlib import Path

import pytest

from tests.pipelines.toy import PIPELINE, Toy

SEARCH = """
  search:
    run: toystages.search.search
    config: search
    needs: {checkpoint: load}
    gates: search.json
    summary: found.txt
    figures: [frontier.svg, tables/points.md]
  quantize: {run: toystages.quantize.quantize, config: quantize, needs: {checkpoint: search}, per: device}
"""
STAGE = """
import json

from toystages.folder import Folder


def search(checkpoint: Folder, config, work):
    gate = {"metric": "ratio to random", "value": config.ratio, "bound": 1.1, "kind": "min"}
    (work.out / "search.json").write_text(json.dumps({"gates": [{**gate, "passed": config.ratio >= 1.1}]}))
    (work.out / "weights.txt").write_text(checkpoint.text("weights.txt"))
    (work.out / "found.txt").write_text("found <three>\\n  of four\\n")
    (work.out / "frontier.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")
    (work.out / "tables").mkdir()
    (work.out / "tables/points.md").write_text("| a |\\n")
"""


@pytest.fixture
def toy(toy: Toy) -> Toy:
    line = next(line for line in PIPELINE.splitlines() if line.startswith("  quantize:"))
    toy.edit("conf/pipeline/main.yaml", line, SEARCH.strip("\n"))
    toy.edit("conf/config.yaml", "{executor: local}", "{search: default}, {executor: local}")
    toy.write("conf/search/default.yaml", "ratio: 1.25\n")
    toy.write("toystages/search.py", STAGE)
    return toy


def test_a_build_ends_with_what_stages_say_cached_or_not(toy: Toy) -> None:
    for _ in range(2):
        out = toy.run("build").out
        assert out.startswith("search\n  found <three>\n    of four\nphone  3.00 MiB"), out
        assert "gates         2 of 2 passed" in out
    (node,) = [node for node in toy.build().summary["nodes"] if node["name"] == "search"]
    assert node["summary"] == "found <three>\n  of four"
    assert node["figures"][0] == {"name": "frontier.svg", "path": "artifacts/build/search/frontier.svg"}


def test_the_report_shows_summaries_and_figures(toy: Toy) -> None:
    assert toy.build().status == 0
    assert toy.run("report").status == 0
    page = (toy.root / "artifacts/report.html").read_text()
    assert "<h2>search</h2>\n<pre>found &lt;three&gt;\n  of four</pre>" in page
    assert '<img src="data:image/svg+xml;base64,' in page and 'alt="frontier.svg"' in page
    assert "<script>" not in page and "points.md" not in page


def test_gates_of_a_stage_for_all_devices_are_judged_for_each(toy: Toy) -> None:
    summary = toy.build().summary
    assert [(gate["device"], gate["metric"]) for gate in summary["gates"]] == [
        ("phone", "ratio to random"),
        ("tablet", "ratio to random"),
        ("phone", "retention"),
        ("tablet", "retention"),
    ]
    assert set(summary["metrics"]) == {"phone", "tablet"}
    assert summary["metrics"]["phone"]["tasks"]["ocr"]["n"] == 10  # as validate says


def test_one_that_fails_stops_all_devices_and_is_shown_for_each(toy: Toy) -> None:
    result = toy.build("search.ratio=1.05")
    assert result.status == 1
    assert "GATE FAILED phone, tablet: ratio to random is 1.05, below 1.1" in result.err
    assert {status for name, status in result.nodes.items() if name not in ("load", "search")} == {"skipped"}
    assert result.summary["metrics"] == {} and not result.summary["passed"]
    shown = toy.run("build", "search.ratio=1.05").out
    assert "tablet  no bundle\n  gates         0 of 1 passed\n    FAILED      ratio to random is 1.05" in shown
    assert toy.run("report").status == 0
    assert "ratio to random is 1.05, below 1.1" in (toy.root / "artifacts/report.html").read_text()
    swept = toy.run("build", "-m", "search.ratio=1.05,1.25").out
    assert "search.ratio=1.05  phone" in swept and "0 of 1 passed" in swept and "2 of 2 passed" in swept


def test_gates_count_where_there_are_no_devices(toy: Toy) -> None:
    pipeline = (toy.root / "conf/pipeline/main.yaml").read_text()
    toy.write("conf/pipeline/main.yaml", pipeline[: pipeline.index("  quantize:")])
    toy.edit("conf/config.yaml", "{device: [phone, tablet]}, ", "")
    assert toy.run("build").status == 0
    failed = toy.run("build", "search.ratio=1.05")
    assert failed.status == 1
    assert "no device\n  gates         0 of 1 passed\n    FAILED      ratio to random is 1.05" in failed.out


@pytest.mark.parametrize("name", ["found.txt", "frontier.svg", "tables/points.md"])
def test_a_file_that_is_declared_must_be_there(name: str, toy: Toy) -> None:
    toy.write("toystages/search.py", STAGE + f'    (work.out / "{name}").unlink()\n')
    result = toy.build()
    assert result.status == 1
    assert f"search: toystages.search.search left no {name}" in result.err


def test_a_known_result_without_what_is_declared_now_is_none(toy: Toy) -> None:
    assert toy.build().status == 0
    toy.edit("conf/pipeline/main.yaml", "summary: found.txt", "summary: other.txt")
    assert "left no other.txt" in toy.build().err
    toy.edit("conf/pipeline/main.yaml", "summary: other.txt", "summary: tables/points.md")
    result = toy.build()
    assert set(result.nodes.values()) == {"cached"}
    assert next(node for node in result.summary["nodes"] if node["name"] == "search")["summary"] == "| a |"


def test_a_summary_must_be_text(toy: Toy) -> None:
    toy.write("toystages/search.py", STAGE + "    (work.out / 'found.txt').write_bytes(b'\\xff')\n")
    result = toy.build()
    assert result.status == 1 and "is no summary" in result.err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("summary: found.txt", "summary: ../found.txt", "is no file of its artifact"),
        ("summary: found.txt", "summary: [found.txt]", "must be the name of a file"),
        ("[frontier.svg, tables/points.md]", "frontier.svg", "must be a list of names of files"),
        ("[frontier.svg, tables/points.md]", "[/frontier.svg]", "is no file of its artifact"),
    ],
)
def test_mistakes_are_told_before_anything_runs(old: str, new: str, message: str, toy: Toy) -> None:
    toy.edit("conf/pipeline/main.yaml", old, new)
    result = toy.run("plan")
    assert result.status == 2 and message in result.err, result.err


@pytest.mark.slow
def test_mlflow_keeps_them(toy: Toy) -> None:
    import mlflow

    toy.edit("conf/pipeline/main.yaml", "  quantize: {", "  quantize: {summary: codes.txt, figures: [codes.txt], ")
    result = toy.build("tracking=mlflow", "+device.phone.overrides.quantize.bits=8")
    assert result.status == 0 and "did not take" not in result.err
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{toy.root}/mlflow.db")
    experiment = client.get_experiment_by_name("toy")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = next(run for run in runs.values() if "mlflow.parentRunId" not in run.data.tags)
    shown = contents(parent.info.artifact_uri)
    assert shown.pop("summary.json") and shown.pop("report.html").startswith("<!doctype html>")
    assert set(shown) == {"search/summary.txt", "search/frontier.svg", "search/tables/points.md"}
    assert shown["search/summary.txt"] == "found <three>\n  of four"
    assert shown["search/frontier.svg"].startswith("<svg")
    phone = contents(runs["phone"].info.artifact_uri)
    assert phone["quantize/summary.txt"] == phone["quantize/codes.txt"] == "0.25 0.5 in 8/32"
    assert runs["phone"].data.metrics["gates.failed"] == 0


def contents(uri: str) -> dict[str, str]:
    folder = Path(uri.removeprefix("file://"))
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_figures_are_in_what_waits_for_mlflow(toy: Toy) -> None:
    """A server that does not answer today gets today's figures tomorrow."""
    toy.write("conf/tracking/mlflow.yaml", "kind: mlflow\nuri: nonsense://nowhere\nexperiment: toy\n")
    assert toy.build("tracking=mlflow").status == 0
    (waiting,) = (toy.root / ".tapeout/outbox").glob("*.json")
    files = json.loads(waiting.read_text())["files"]
    assert {each["path"] for each in files} == {"search/summary.txt", "search/frontier.svg", "search/tables/points.md"}
