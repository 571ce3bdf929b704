"""Real MLflow on sqlite."""

from pathlib import Path

import pytest

from tests.pipelines.toy import Toy


@pytest.mark.slow
def test_one_run_a_build_with_a_child_a_device(toy: Toy) -> None:
    import mlflow

    toy.write("conf/own/default.yaml", f"values: [{', '.join(map(str, range(150)))}]\n")
    first = toy.build("tracking=mlflow", "+own=default")
    assert first.status == 0, first.err
    assert "did not take" not in first.err
    assert toy.build("tracking=mlflow", "+own=default").status == 0  # nothing runs, nothing is published
    assert not list((toy.root / ".tapeout/outbox").glob("*"))
    runs = find_runs(mlflow, toy.root)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run not in parents}
    assert len(parents) == 1
    assert set(children) == {"phone", "tablet"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parents[0].info.run_id}
    assert parents[0].data.params["quantize.bits"] == "4"
    assert parents[0].data.params["own.values.149"] == "149"
    assert children["phone"].data.metrics["tasks.ocr.retention_low"] == 0.97
    assert children["phone"].data.params["runtime"] == "a"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{toy.root}/mlflow.db")
    history = client.get_metric_history(parents[0].info.run_id, "quantize.error")
    assert [(each.step, each.value) for each in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


VALIDATE = """
import json

from toystages.folder import Folder


def validate(model: Folder, config, device, work):
    value = 0.9 - config.noise
    task = {"n": 10, "artifact": value, "retention": value, "metric": "exact"}
    gate = {"metric": "retention", "task": "ocr & more", "value": value, "bound": 0.5, "kind": "min"}
    token = {"value": 2.0, "low": 1.0, "high": 3.0}
    metrics = {"tasks": {"ocr & more": task}, "predicted": {"token_ms": token}, "basis": {"decode": "a table"}}
    gates = [{**gate, "passed": value >= 0.5}]
    (work.out / "metrics.json").write_text(json.dumps({**metrics, "gates": gates}))
"""


@pytest.mark.slow
def test_two_builds_compare_in_mlflow_by_device(toy: Toy) -> None:
    import mlflow

    toy.write("toystages/validate.py", VALIDATE)
    assert toy.build("tracking=mlflow", "device=all", "--name", "good").status == 0
    other = ["+device.watch.overrides.quantize.bits=8", "+device.watch.overrides.validate.noise=0.6"]
    assert toy.build("tracking=mlflow", "device=all", *other).status == 1
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{toy.root}/mlflow.db")
    experiment = client.get_experiment_by_name("toy").experiment_id
    names = "attributes.run_name = 'watch' and tags.device = 'watch'"
    second, first = client.search_runs([experiment], filter_string=names, order_by=["tags.build DESC"])
    assert (first.data.tags["build"], second.data.tags["build"]) == ("1", "2")
    assert first.data.tags["build_name"] == "good" and "build_name" not in second.data.tags
    on_the_way = ("quantize.error", "quantize.seconds")  # of what only the second build made for the watch alone
    shared = {name for name in first.data.metrics if not name.endswith(".seconds")}
    assert shared == {name for name in second.data.metrics if name not in on_the_way and not name.endswith(".seconds")}
    figures = {"tasks.ocr _ more.retention", "predicted.token_ms", "predicted.token_ms.low", "gates.failed"}
    assert figures <= shared
    assert [each.data.metrics["gates.failed"] for each in (first, second)] == [0, 1]
    assert second.data.metrics["tasks.ocr _ more.retention"] == pytest.approx(0.3)
    assert (first.data.params["quantize.bits"], second.data.params["quantize.bits"]) == ("4", "8")
    assert (first.info.status, second.info.status) == ("FINISHED", "FAILED")  # its bundle was not made
    runs = {(run.data.tags["build"], run.info.run_name): run for run in client.search_runs([experiment])}
    assert runs["2", "phone"].info.status == "FINISHED"
    phone = [runs[number, "phone"].data.tags["digest"] for number in ("1", "2")]
    assert phone[0] == phone[1] != first.data.tags["digest"] and "digest" not in second.data.tags
    parent = next(run for run in runs.values() if run.info.status == "FAILED" and "device" not in run.data.tags)
    assert len(parent.info.run_name) <= 120 and "noise=0.6" in parent.data.tags["overrides"]
    page = Path(parent.info.artifact_uri.removeprefix("file://"), "report.html").read_text()
    assert page.startswith("<!doctype html>") and "watch" in page


def find_runs(mlflow: object, root: Path) -> list[object]:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")  # type: ignore[attr-defined]
    experiment = client.get_experiment_by_name("toy")
    return list(client.search_runs([experiment.experiment_id]))
