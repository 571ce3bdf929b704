"""What the pipeline declares that a stage may read of a device is all that its predictions read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipelines.given import limited
from pipelines.project import find_project
from stages.artifacts import QuantizedModel
from stages.devices.latency_sources import predictor_of
from stages.devices.risks import risks_of
from stages.evaluation.predicted import predicted
from stages.schema import DeviceProfile
from stages.schema.search import LatencySource
from tests.conf import group
from tests.rounded import rounded
from tests.toy import toy_checkpoint

PROJECT = find_project(Path(__file__).parent).root
STAGES: Any = OmegaConf.to_container(OmegaConf.load(PROJECT / "conf/pipeline/mobile.yaml"))["stages"]
NAMES = sorted(path.stem for path in (PROJECT / "conf/device").glob("*.yaml"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    path = tmp_path_factory.mktemp("toy")
    return rounded(toy_checkpoint(path / "checkpoint"), path / "quantized")


def seen_by(stage: str, device: DeviceProfile) -> Any:
    """The profile as the stage is given it, in which another field cannot be read."""
    values: Any = OmegaConf.to_container(OmegaConf.structured(device), enum_to_str=True)
    part = {key: values[key] for key in STAGES[stage]["device_fields"]}
    task: Any = SimpleNamespace(run=STAGES[stage]["run"])
    return limited(task, "device", part, DeviceProfile, "device_fields")


@pytest.mark.parametrize("name", NAMES)
def test_validate_predicts_from_what_it_declares(name: str, model: QuantizedModel) -> None:
    device = group("device", name)
    seen = seen_by("validate", device)
    description = {"context": 256, "risks": []}
    assert predicted(model, description, seen) == predicted(model, description, device)
    assert risks_of(description, model, seen) == risks_of(description, model, device)


@pytest.mark.parametrize("stage", ["search", "shortlist"])
@pytest.mark.parametrize("name", ["pixel-8", "galaxy-s25", "iphone-15-pro", "macbook-air-m4"])
def test_searches_predict_from_what_they_declare(name: str, stage: str, model: QuantizedModel) -> None:
    store = model.store()
    sizes = {name: store.format(name).bytes for name in store.names()}
    found = []
    for device in (group("device", name), seen_by(stage, group("device", name))):
        predictor = predictor_of(LatencySource.predicted, device, context=256, text_tokens=16)
        assert predictor is not None
        found.append(predictor.predict(model.config(), sizes))
    assert found[0] == found[1]
