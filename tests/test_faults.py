"""The reference model, damaged on purpose: the default gates see each fault, and let sound files pass.

benchmarks/faults.py does the same over many seeds, with the default number of questions.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.damage import FAULTS, Subject
from pipelines.workspace import Workspace
from stages.artifacts import Baseline, Probe
from stages.baseline import baseline
from stages.convert import convert
from stages.evaluate import evaluate
from stages.evaluation.gates import check_gates
from stages.probe import probe
from tests.conf import group
from tests.reader import REFERENCE
from tests.rounded import rounded

SEES = {  # that metric alone is enough, whatever the answers
    "scales": {"fidelity.scale_error", "parity.error", "parity.features_error"},
    "tokens": {"fidelity.vocabulary"},
    "mean": {"fidelity.pixels"},
    "cache": {"parity.error"},
    "rotary": {"parity.error"},
}
GATES = [gate for gate in group("validate", "default").gates if gate.metric != "retention_low"]  # 3 a task are too few


def workspace(path: Path, **given: Any) -> Workspace:
    (path / "out").mkdir(parents=True)
    return Workspace(path / "out", path / "scratch", given=given)


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Baseline:
    config = replace(group("questions", "default"), per_task=3)
    work = workspace(tmp_path_factory.mktemp("baseline"), checkpoint=REFERENCE, config=config)
    return baseline(REFERENCE, config, work)


@pytest.fixture(scope="module", params=["pixel-8", "iphone-15-pro"])
def subject(request, tmp_path_factory) -> Subject:
    path, device = tmp_path_factory.mktemp("subject"), group("device", request.param)
    model = rounded(REFERENCE, path / "model", bits=8, embeddings=8, convolutions=8)
    probed: Probe = probe(model, group("probe", "default", images=1), workspace(path / "probe"))
    config = group("convert", "default")
    work = workspace(path / "convert")
    return Subject(model, probed, config, device, convert(model, config, device, work, probe=probed))


@pytest.fixture
def failed(subject: Subject, asked: Baseline, tmp_path: Path) -> Callable[[str, int], set[str]]:
    """The metrics whose gates a fault fails."""

    def measured(fault: str, seed: int) -> set[str]:
        damaged = FAULTS[fault](subject, random.Random(f"{fault}:{seed}"), tmp_path / "damaged")
        config = group("validate", "default")
        artifacts = {"checkpoint": REFERENCE, "model": damaged.model, "device_model": damaged.device_model}
        work = workspace(tmp_path / "evaluate", **artifacts, baseline=asked, config=config)
        metrics = evaluate(REFERENCE, damaged.model, damaged.device_model, config, work, asked).metrics()
        gates = check_gates(metrics, GATES, config.predictions)
        return {gate["metric"] for gate in gates if not gate["passed"]}

    return measured


def test_sound_files_pass(failed):
    assert failed("none", 0) == set()


@pytest.mark.parametrize("fault", sorted(SEES))
def test_a_fault_is_seen_by_what_it_changes(failed, fault):
    assert failed(fault, 1) & SEES[fault]
