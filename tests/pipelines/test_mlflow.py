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


def find_runs(mlflow: object, root: Path) -> list[object]:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")  # type: ignore[attr-defined]
    experiment = client.get_experiment_by_name("toy")
    return list(client.search_runs([experiment.experiment_id]))
