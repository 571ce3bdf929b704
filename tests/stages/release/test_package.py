"""What the stage `package` puts into a bundle beside the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from PIL import Image

from pipelines.errors import ConfigError
from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, Evaluation, QuantizedModel, Validation
from stages.checks import package as check
from stages.package import package
from stages.release.bundles.libraries import TOOLS
from stages.release.manifest import read
from stages.schema import DeviceProfile
from tests.conf import group
from tests.rounded import rounded
from tests.toy import toy_checkpoint

ROOT = Path(__file__).resolve().parents[3]
TASK = {"n": 10, "metric": "word", "fp32": 0.9, "artifact": 0.9, "retention": 1.0, "retention_low": 0.97}
METRICS = {
    "questions": {"source": "procedural", "count": 20},
    "tasks": {"ocr": {**TASK, "retention_high": 1.02}, "count": {**TASK, "retention": None, "retention_low": None}},
    "gates": [{"metric": "top1", "value": 1.0, "bound": 0.9, "passed": True}],
    "predicted": {"token_ms": {"value": 2.0, "low": 1.0, "high": 4.0, "judged": True}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    path = tmp_path_factory.mktemp("package")
    return rounded(toy_checkpoint(path / "checkpoint"), path / "quantized")


def packaged(model: QuantizedModel, path: Path, source: str = "procedural", **values: Any) -> Path:
    """A bundle of made-up device files, whose evaluation answered three questions right."""
    device: DeviceProfile = group("device", "pixel-8")
    made, judged = DeviceModel(path / "device"), Evaluation(path / "evaluation")
    for folder in (made.path, judged.path / "proofs", path / "bundle"):
        folder.mkdir(parents=True)
    (made.path / "decoder.onnx").write_bytes(b"graph")
    made.write_json("model.json", {"runtime": "onnxruntime", "files": {"decoder": "decoder.onnx"}, "functions": {}})
    metrics = {**METRICS, "questions": {**METRICS["questions"], "source": source}}  # type: ignore[dict-item]
    judged.write_json("metrics.json", metrics)
    lines = []
    for number, answer in enumerate(["PYCKD", "3", "red"]):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(judged.path / f"proofs/{number}.png")
        proof = {"task": "ocr", "image": f"proofs/{number}.png", "question": f"which {number}", "answer": answer}
        lines.append(json.dumps(proof) + "\n")
    (judged.path / "proofs.jsonl").write_text("".join(lines))
    config = replace(group("package", "default"), **values)
    package(made, judged, Validation(judged.path), model, config, device, Workspace(path / "bundle", path / "scratch"))
    return path / "bundle"


def test_a_bundle_tells_what_it_is(model: QuantizedModel, tmp_path: Path) -> None:
    bundle = packaged(model, tmp_path, name="demo", version="2.0.0", licence="Apache-2.0", self_test=2)
    manifest = read(bundle)
    assert manifest.title == "demo 2.0.0 for pixel-8"
    asked = manifest.value["self_test"]
    assert [each["answer"] for each in asked] == ["PYCKD", "3"]
    assert all((bundle / each["image"]).is_file() for each in asked)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "| ocr | 10 | 90.0 % | 90.0 % | 100.0 % [97.0 %, 102.0 %] |" in card
    assert "1 of 1 passed" in card and "Apache-2.0" in card and "1 to 4, judged" in card
    text = (bundle / "LICENCES.md").read_text()
    assert "Apache-2.0" in text and "MIT License" in text and "| torch | 2." in text


def test_the_bill_of_materials_is_cyclonedx(model: QuantizedModel, tmp_path: Path) -> None:
    bundle = packaged(model, tmp_path, licence="Apache-2.0 OR MIT")
    text = (bundle / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert "timestamp" not in bill["metadata"]
    component = bill["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    assert component["licenses"] == [{"expression": "Apache-2.0 OR MIT"}]
    scores = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"slice": "ocr", "type": "word", "value": "0.9"} in scores
    files = {each["name"]: each["hashes"][0]["content"] for each in bill["components"] if each["type"] == "file"}
    listed = {file.path: file.sha256 for file in read(bundle).files if file.path != "sbom.cdx.json"}
    assert files == listed
    tools = {each["name"] for each in bill["metadata"]["tools"]["components"]}
    assert tools == set(TOOLS)


def test_libraries_of_the_bill_are_in_the_key() -> None:
    stage = yaml.safe_load((ROOT / "conf/pipeline/mobile.yaml").read_text())["stages"]["package"]
    assert set(TOOLS) <= set(stage["libraries"])


@pytest.mark.parametrize(
    ("values", "count"),
    [({"own_questions": False}, 0), ({"own_questions": True}, 3), ({"own_questions": True, "self_test": 0}, 0)],
)
def test_own_images_travel_only_when_asked_for(
    values: dict[str, Any], count: int, model: QuantizedModel, tmp_path: Path
) -> None:
    bundle = packaged(model, tmp_path, source="receipts", **values)
    assert len(read(bundle).value["self_test"]) == count
    assert len(list(bundle.rglob("*.png"))) == count


def test_the_text_of_a_licence(model: QuantizedModel, tmp_path: Path) -> None:
    (tmp_path / "TERMS").write_text("Do what you like.")
    bundle = packaged(model, tmp_path, licence="LicenseRef-Mine", licence_file=str(tmp_path / "TERMS"))
    assert (bundle / "LICENCE-WEIGHTS.txt").read_text() == "Do what you like."
    assert read(bundle).value["licence"] == {
        "weights": "LicenseRef-Mine",
        "files": ["LICENCES.md", "LICENCE-WEIGHTS.txt"],
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"name": "my model"}, "package.name"),
        ({"name": ""}, "package.name"),
        ({"version": "../1"}, "package.version"),
        ({"version": "1.0\n"}, "package.version"),
        ({"licence": "<none>"}, "package.licence"),
        ({"licence_file": "LICENSE"}, "package.licence_file"),
        ({"self_test": 9}, "package.self_test"),
        ({"self_test": -1}, "package.self_test"),
    ],
)
def test_what_cannot_be_packaged_is_said_before_anything_runs(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(replace(group("package", "default"), **values))
    assert caught.value.message.startswith(expected) and caught.value.hint
