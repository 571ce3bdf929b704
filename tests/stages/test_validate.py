"""Stage validate: one evaluation, judged for each device that ships its files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError
from stages.artifacts import DeviceModel, Evaluation, QuantizedModel
from stages.evaluation.names import PREDICTED
from stages.schema import Budgets, DeviceProfile
from stages.validate import validate
from tests.answering import Answering, files, workspace
from tests.conf import group
from tests.converted import profile

Made = tuple[Answering, QuantizedModel, DeviceModel, Evaluation]
SIZE = {"metric": "size_bytes", "task": None, "min": None, "max": 10**9}
TOKEN = {"metric": "predicted.token_ms", "task": None, "min": None}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    answering = Answering.of(tmp_path_factory.mktemp("answering"))
    model = answering.quantized("int4", method="rtn", embeddings=4)
    device_model = answering.device_model("onnxruntime", model, "int4")
    return answering, model, device_model, answering.evaluation(model, device_model, answering.path / "evaluation")


def judged(made: Made, device: DeviceProfile, path: Path, **changes: Any) -> dict[str, Any]:
    _, model, device_model, evaluation = made
    config = group("validate", "default", **changes)
    return validate(evaluation, model, device_model, config, device, workspace(path)).metrics()


def test_what_was_evaluated_stays_as_it_was(made: Made, tmp_path: Path) -> None:
    before = files(made[3])
    metrics = judged(made, profile(), tmp_path / "out", gates=[SIZE], advise=None)
    found = made[3].metrics()
    assert {key: metrics[key] for key in found} == found and files(made[3]) == before
    (gate,) = metrics["gates"]
    assert gate["passed"] and gate["value"] == found["size_bytes"] and "help" not in gate


def test_a_format_that_is_not_known_to_be_fast_is_a_risk(made: Made, tmp_path: Path) -> None:
    for number, fast in enumerate((["affine-int4", "affine-int8"], ["affine-int8"], [])):
        device = replace(profile(), fast_formats=fast)
        assert judged(made, device, tmp_path / str(number), gates=[SIZE], advise=None)["risks"] == number


def test_of_a_device_that_nothing_is_known_of_no_speed_is_predicted(made: Made, tmp_path: Path) -> None:
    metrics = judged(made, profile(), tmp_path / "out", gates=[SIZE], advise=None)
    assert "token_ms" not in metrics.get("predicted", {})
    with pytest.raises(ConfigError, match="cannot be predicted"):
        judged(made, profile(), tmp_path / "gate", gates=[TOKEN | {"max": 1e9}], advise=None)


def test_each_device_has_predictions_of_its_own(made: Made, tmp_path: Path) -> None:
    devices = {name: group("device", name) for name in ("pixel-8", "galaxy-s25")}
    found = {name: judged(made, device, tmp_path / name, gates=[SIZE]) for name, device in devices.items()}
    for metrics in found.values():
        assert set(metrics["predicted"]) <= set(PREDICTED)
        for each in metrics["predicted"].values():
            assert 0 < each["low"] <= each["value"] <= each["high"]
    first, second = found.values()
    assert first["predicted"] != second["predicted"]
    assert first["tasks"] == second["tasks"]


@pytest.mark.parametrize("predictions", ["worst", "value"])
def test_gates_on_predictions_look_at_the_end_that_is_asked_for(predictions: str, made: Made, tmp_path: Path) -> None:
    device = group("device", "pixel-8")
    token = judged(made, device, tmp_path / "known", gates=[SIZE])["predicted"]["token_ms"]
    assert token["value"] < token["high"]
    bound = (token["value"] + token["high"]) / 2
    device = replace(device, budgets=Budgets(None, None, bound, None, None))
    gates = [TOKEN | {"max": bound}]
    metrics = judged(made, device, tmp_path / "out", gates=gates, predictions=predictions)
    assert [gate["metric"] for gate in metrics["gates"]] == ["predicted.token_ms", "budget.token_ms"]
    for gate in metrics["gates"]:
        assert gate["predicted"] and gate["passed"] == (predictions == "value")
        assert gate["value"] == token["high" if predictions == "worst" else "value"]
        assert ("the middle of the predicted interval" in " ".join(gate.get("help", []))) == (predictions == "worst")


def test_a_gate_that_fails_on_answers_says_what_would_help(made: Made, tmp_path: Path) -> None:
    retention = {"metric": "retention_low", "task": "overall", "min": 0.999, "max": None}
    device = group("device", "pixel-8")
    gate, *_ = judged(made, device, tmp_path / "out", gates=[retention])["gates"]
    assert not gate["passed"] and gate["by"] < 0 and any("divergence" in said for said in gate["help"])
    other, *_ = judged(made, replace(device, weight_formats=[]), tmp_path / "other", gates=[retention])["gates"]
    assert other["help"] and not any("divergence" in said for said in other["help"])  # none that the device can hold


def test_the_same_twice_is_the_same_bytes(made: Made, tmp_path: Path) -> None:
    device = group("device", "pixel-8")
    for name in ("one", "two"):
        judged(made, device, tmp_path / name)
    assert (tmp_path / "one/metrics.json").read_bytes() == (tmp_path / "two/metrics.json").read_bytes()
