"""What `tapeout plan` refuses of this project's own configuration: exit status 2, and the next step."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ConfigError
from stages.checks import calibration, probe, questions, sizes, training, validation, weight_formats
from stages.data.example import Example, Questions
from stages.evaluation.answers import Answer
from stages.evaluation.metrics import compare
from stages.evaluation.names import TASK_METRICS, TEXT_METRICS
from stages.evaluation.scores import KINDS
from tests import conf

PROJECT = Path(__file__).parents[2]
CORE_ML, ONNX = "iphone-15-pro", "pixel-8"
GATE = {"metric": "retention_low", "task": None, "min": 0.95, "max": None}


def group(name: str, file: str = "default", **changes):
    return conf.group(name, file, **changes)


FORMATS = [
    (CORE_ML, "int4", {"bits": 3}, ["cannot hold affine-int3", "nearest is affine-int4", "quantize.bits=4'"]),
    (ONNX, "int4", {"bits": 6}, ["cannot hold affine-int6", "nearest is affine-int8", "quantize.bits=8'"]),
    (ONNX, "int4", {"embeddings": 3}, ["nearest is affine-int4", "quantize.embeddings=4'"]),
    (ONNX, "palette4", {}, ["cannot hold palette-4", "nearest is affine-int4", "quantize.format=affine'"]),
    (ONNX, "palette4", {"bits": 3, "method": "kmeans"}, ["format=affine'", "method=gptq'", "bits=4'"]),
    (ONNX, "int4", {"group_size": 24}, ["cannot hold groups of 24", "multiple of 16", "group_size=32'"]),
    (ONNX, "int4", {"overrides": [{"pattern": "text.*", "group_size": 8}]}, ["cannot hold groups of 8"]),
    (
        ONNX,
        "int4",
        {"overrides": [{"pattern": "text.*", "bits": 3}]},
        ["nearest is affine-int4; say so in that entry of quantize.overrides"],
    ),
]
SIZES = [
    (CORE_ML, {"context": 100}, ["multiple of 32", "set convert.context=128", "overrides.convert.context=128'"]),
    (CORE_ML, {"prefill_chunk": 0}, ["prefill_chunk is 0; expected 2 to 256", "convert.prefill_chunk=64"]),
    (CORE_ML, {"prefill_chunk": 257}, ["prefill_chunk is 257"]),
    (CORE_ML, {"minimum_os": "iOS17"}, ["minimum_os is 'iOS17'", "minimum_os=iOS18"]),
    (CORE_ML, {"minimum_os": "macOS14.5"}, ["minimum_os=macOS15"]),
    (CORE_ML, {"minimum_os": ""}, ["minimum_os=iOS18"]),
    (ONNX, {"prefill_chunk": 0}, ["prefill_chunk is 0; expected 1 to 256"]),
    (ONNX, {"context": 0}, ["context is 0", "convert.context=256"]),
]
OTHERS = [
    (validation, "validate", {"gates": [GATE | {"metric": "retention_lo"}]}, ["did you mean 'retention_low'?"]),
    (validation, "validate", {"gates": [GATE | {"metric": "parity_top1"}]}, ["did you mean 'parity.top1'?"]),
    (validation, "validate", {"gates": [GATE | {"task": "ocl"}]}, ["there is no task 'ocl'", "did you mean 'ocr'?"]),
    (validation, "validate", {"gates": [GATE | {"metric": "size_bytes", "task": "ocr"}]}, ["task: null"]),
    (validation, "validate", {"gates": [GATE | {"min": None}]}, ["bounds nothing", "min or a max"]),
    (validation, "validate", {"gates": [GATE | {"max": 0.9}]}, ["min of 0.95 above its max of 0.9"]),
    (validation, "validate", {"confidence": 1.0}, ["confidence is 1.0", "less than 1"]),
    (validation, "validate", {"confidence": 0.0}, ["confidence is 0.0"]),
    (validation, "validate", {"resamples": 0}, ["resamples is 0"]),
    (validation, "validate", {"gates": [GATE | {"metric": "parity.rows"}]}, ["not measured", "kind is questions"]),
    (validation, "validate", {"kind": "parity"}, ["retention_low is not measured", "kind is parity", "parity.error"]),
    (probe, "probe", {"tokens": 0}, ["probe.tokens is 0"]),
    (calibration, "calibrate", {"samples": 0}, ["calibrate.samples is 0"]),
    (calibration, "calibrate", {"tokens": 1}, ["calibrate.tokens is 1", "expected 2 or more"]),
    (calibration, "calibrate", {"threads": 0}, ["calibrate.threads is 0"]),
    (calibration, "calibrate", {"image_token_weight": -1.0}, ["image_token_weight is -1.0"]),
    (calibration, "calibrate", {"answer_token_weight": -2.0}, ["answer_token_weight is -2.0"]),
    (questions, "questions", {"per_task": 0}, ["per_task is 0"]),
    (training, "train", {"steps": 0}, ["train.steps is 0"]),
    (training, "train", {"warmup": 0}, ["train.warmup is 0"]),
]


def refused(check, *arguments) -> str:
    with pytest.raises(ConfigError) as error:
        check(*arguments)
    assert error.value.hint
    return str(error.value) + error.value.hint


@pytest.mark.parametrize(("name", "file", "changes", "parts"), FORMATS)
def test_formats_that_a_device_cannot_hold_get_the_nearest(name, file, changes, parts):
    message = refused(weight_formats, group("quantize", file, **changes), group("device", name))
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(("name", "changes", "parts"), SIZES)
def test_sizes_that_a_runtime_cannot_have(name, changes, parts):
    system = {key: value for key, value in changes.items() if key == "minimum_os"}
    convert = {key: value for key, value in changes.items() if key not in system}
    message = refused(sizes, group("convert", **convert), group("device", name, **system))
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(("check", "name", "changes", "parts"), OTHERS)
def test_bounds_and_counts_that_mean_nothing(check, name, changes, parts):
    message = refused(check, group(name, **changes))
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize("name", [CORE_ML, ONNX])
def test_what_this_project_ships_passes(name):
    device = group("device", name)
    sizes(group("convert"), device)
    probe(group("probe"))
    validation(group("validate", "parity"), device)
    validation(group("validate"), device)
    questions(group("questions"))
    training(group("train"))
    for file in ("int4", "int8", "none"):
        weight_formats(group("quantize", file), device)


def test_names_are_of_what_is_measured():
    told = dict.fromkeys([*TASK_METRICS, "metric"])
    for metric in KINDS:
        asked = Example(np.zeros((2, 2, 3), np.uint8), "what?", ("TAPE",), "ocr", 0, metric)
        answers = [Answer("ocr", "what?", "TAPE", "TAPE", 1.0, [1])]
        found = compare(Questions([asked], [asked]), answers, answers, group("validate", resamples=10))
        assert found["tasks"]["ocr"].keys() == found["overall"].keys() >= told.keys()
        assert found["tasks"]["ocr"].keys() <= {*told, *TEXT_METRICS}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("validate.gates=[{metric: retention_lo, task: null, min: 0.9, max: null}]", "did you mean 'retention_low'?"),
        ("convert.context=0", "context is 0"),
        ("questions.per_task=0", "questions.per_task is 0"),
        ("quantize.group_size=24", "cannot hold groups of 24"),
        ("probe.folder=nowhere", "probe.folder: the folder"),
    ],
)
def test_the_plan_asks_before_anything_runs(override, part):
    command = [sys.executable, "-m", "pipelines.cli", "plan", "tracking=none", f"model.path={PROJECT}", override]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2 and part in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_the_plan_imports_nothing_heavy():
    script = "import sys, json, stages.checks; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True).stdout)
    assert not {"numpy", "torch", "coremltools", "onnx"} & set(loaded)


def test_a_budget_of_nothing_is_refused() -> None:
    device = group("device", ONNX, budgets={"size_mib": 0})
    assert "budgets.size_mib is 0" in refused(validation, group("validate"), device)


@pytest.mark.parametrize("name", ["memory_mib", "token_ms", "first_token_ms", "encode_ms"])
def test_a_bound_of_nothing_is_refused(name: str) -> None:
    assert f"budgets.{name} is -1" in refused(validation, group("validate"), group("device", ONNX, budgets={name: -1}))


def test_a_latency_that_cannot_be_predicted_is_refused() -> None:
    unknown = {"hardware": {"bandwidth_gb_s": None}}
    error = refused(validation, group("validate"), group("device", ONNX, **unknown, budgets={"token_ms": 10}))
    assert ONNX in error and "hardware.bandwidth_gb_s" in error
    gates = [{"metric": "predicted.token_ms", "task": None, "min": None, "max": 10}]
    asks = group("validate", gates=gates)
    assert "hardware.bandwidth_gb_s" in refused(validation, asks, group("device", ONNX, **unknown))
    validation(asks, group("device", ONNX))
