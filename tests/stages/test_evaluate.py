"""Stage evaluate: what the shipped files answer, on both runtimes, in one process or several."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import StageError
from stages.artifacts import DeviceModel, Evaluation, QuantizedModel
from stages.data.asked import read_asked
from stages.evaluate import evaluate
from stages.evaluation import questioning
from stages.evaluation.answers import read_answers
from stages.evaluation.gates import check_gates
from stages.evaluation.names import MODEL_METRICS, TASK_METRICS, TEXT_METRICS
from stages.schema import Prediction, QuestionsConfig
from tests.answering import DEVICES, Answering, asked, files, workspace
from tests.conf import group

COARSE = {"method": "rtn", "embeddings": 4}
KINDS: dict[str, dict[str, Any]] = {"none": {}, "int8": {}, "int4": COARSE}  # of which int4 makes answers flip
NARROW = ("parity.top1", "retention_low")  # random weights make narrow choices, which Core ML's float16 decides
Made = tuple[QuantizedModel, DeviceModel, Evaluation]


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Answering:
    return Answering.of(tmp_path_factory.mktemp("answering"))


@pytest.fixture(scope="module")
def made(answering: Answering) -> Callable[[str, str], Made]:
    """A kind of weights on a runtime, and its evaluation."""
    quantized = cache(lambda kind: answering.quantized(kind, **KINDS[kind]))

    @cache
    def make(kind: str, runtime: str) -> Made:
        model = quantized(kind)
        device_model = answering.device_model(runtime, model, kind)
        path = answering.path / f"evaluate-{kind}-{runtime}"
        return model, device_model, answering.evaluation(model, device_model, path)

    return make


@pytest.mark.parametrize("runtime", DEVICES)
def test_undamaged_files_pass_every_gate(runtime: str, made: Any, answering: Answering) -> None:
    metrics = made("none", runtime)[2].metrics()
    gates = check_gates({**metrics, "risks": 0}, group("validate", "default").gates, Prediction.worst)
    assert failed(gates, runtime) == []
    assert {gate["task"] for gate in gates} == {None, "words", "letters"}
    assert metrics["questions"] == answering.baseline.metrics()["questions"]
    assert metrics["overall"]["fp32"] == 1.0  # its own answers are the right ones
    assert metrics["overall"]["retention"] == (1.0 if runtime == "onnxruntime" else pytest.approx(1.0, abs=0.2))
    assert sum(task["n"] for task in metrics["tasks"].values()) == metrics["questions"]["count"]


def failed(gates: list[dict[str, Any]], runtime: str) -> list[dict[str, Any]]:
    """Those that failed, but for what NARROW speaks of."""
    return [gate for gate in gates if not (gate["passed"] or (runtime == "coreml" and gate["metric"] in NARROW))]


@pytest.mark.parametrize("runtime", DEVICES)
def test_int8_passes_what_tells_of_numbers(runtime: str, made: Any) -> None:
    model, device_model, evaluation = made("int8", runtime)
    metrics = evaluation.metrics()
    of_model = [gate for gate in group("validate", "default").gates if gate.metric in MODEL_METRICS]
    gates = check_gates({**metrics, "risks": 0}, of_model, Prediction.worst)
    assert {gate["metric"] for gate in gates} >= {"fidelity.scale_error", "parity.top1", "fidelity.kl"}
    assert failed(gates, runtime) == []
    assert metrics["parity"]["top1"] > 0.98
    assert 0 < metrics["fidelity"]["kl"] <= metrics["fidelity"]["kl_high"]
    layers = evaluation.read_json("layers.json")
    assert metrics["fidelity"]["scale_error"] == max(layer["scale_error"] for layer in layers.values())
    assert set(layers) == {name for name in model.store().names() if model.store().format(name).format != "float"}
    size = sum(path.stat().st_size for path in device_model.path.rglob("*") if path.is_file())
    assert metrics["size_bytes"] == size


def test_both_runtimes_are_asked_the_same(made: Any, answering: Answering) -> None:
    answers = [read_answers(made("none", runtime)[2].path / "answers.jsonl") for runtime in DEVICES]
    expected = read_answers(answering.baseline.path / "answers.jsonl")
    for said in answers:
        assert [(each.task, each.question, each.expected) for each in said] == [
            (each.task, each.question, each.expected) for each in expected
        ]
    assert (
        len({each.answer for each in expected}) > len(expected) / 2
    )  # a model that always says one thing shows little


def test_metrics_have_the_names_that_gates_know(made: Any) -> None:
    metrics = made("int8", "onnxruntime")[2].metrics()
    for values in (*metrics["tasks"].values(), metrics["overall"]):
        assert {*TASK_METRICS, "metric"} <= set(values) <= {*TASK_METRICS, *TEXT_METRICS, "metric"}
    told = {f"{part}.{name}" for part in ("parity", "fidelity") for name in metrics[part]}
    assert told == {name for name in MODEL_METRICS if name.partition(".")[0] in ("parity", "fidelity")}


def test_several_processes_write_the_same_bytes(
    made: Any, answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, device_model, _ = made("int4", "onnxruntime")
    monkeypatch.setattr(questioning, "PART", 6)
    one = answering.evaluation(model, device_model, tmp_path / "one")
    two = answering.evaluation(model, device_model, tmp_path / "two", processes=2)
    assert files(one) == files(two)
    assert {"metrics.json", "layers.json", "answers.jsonl", "flips.jsonl"} <= files(one).keys()
    monkeypatch.undo()
    whole = made("int4", "onnxruntime")[2]
    assert files(whole)["answers.jsonl"] == files(one)["answers.jsonl"]
    for part in ("parity", "fidelity"):
        assert whole.metrics()[part] == pytest.approx(one.metrics()[part], rel=1e-6, abs=1e-9)


def test_what_flipped_is_kept_with_its_image(
    made: Any, answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, device_model, evaluation = made("int4", "onnxruntime")
    before = read_answers(answering.baseline.path / "answers.jsonl")
    after = read_answers(evaluation.path / "answers.jsonl")
    changed = [index for index in range(len(after)) if before[index].score != after[index].score]
    flips = flips_of(evaluation)
    assert len(flips) == len(changed) > 2
    assert len(changed) / len(after) == pytest.approx(evaluation.metrics()["overall"]["flips"])
    gained = [flip["score_after"] - flip["score_before"] for flip in flips]
    assert gained == sorted(gained) and gained[0] < 0  # what was lost most comes first
    asked = read_asked(answering.baseline.path)
    for flip in flips:
        assert set(flip) == {
            *("task", "question", "expected", "before", "after", "score_before", "score_after", "image")
        }
        kept = np.asarray(Image.open(evaluation.path / flip["image"]))
        alike = [each for each in asked if (each.question, each.answer) == (flip["question"], flip["expected"])]
        assert any(np.array_equal(kept, each.image) for each in alike)
    monkeypatch.setattr(questioning, "FLIPS", 2)
    monkeypatch.setattr(questioning, "_WIDTH", 24)
    few = answering.evaluation(model, device_model, tmp_path / "few")
    assert [flip["image"] for flip in flips_of(few)] == ["flips/0000.png", "flips/0001.png"] + [None] * (len(flips) - 2)
    assert sorted(path.name for path in (few.path / "flips").iterdir()) == ["0000.png", "0001.png"]
    assert max(Image.open(few.path / "flips/0000.png").size) == 24


def flips_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    text = (evaluation.path / "flips.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_where_nothing_flipped_there_are_no_images(made: Any) -> None:
    evaluation = made("none", "onnxruntime")[2]
    assert (evaluation.path / "flips.jsonl").read_bytes() == b"" and not (evaluation.path / "flips").exists()


@pytest.mark.slow
def test_more_threads_change_only_last_bits(made: Any, answering: Answering, tmp_path: Path) -> None:
    model, device_model, evaluation = made("int8", "onnxruntime")
    two = answering.evaluation(model, device_model, tmp_path / "two", threads=2)
    assert files(two)["answers.jsonl"] == files(evaluation)["answers.jsonl"]
    assert two.metrics()["fidelity"] == pytest.approx(evaluation.metrics()["fidelity"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("file", "profile", "metric"), [("validate", {"kind": "questions"}, "baseline"), ("parity", {}, "probe")]
)
def test_what_it_needs_is_named(
    file: str, profile: dict[str, str], metric: str, made: Any, answering: Answering, tmp_path: Path
) -> None:
    model, device_model, _ = made("none", "onnxruntime")
    config = group("validate", "parity" if file == "parity" else "default", **profile)
    with pytest.raises(StageError, match=f"needs a {metric}") as error:
        evaluate(answering.checkpoint, model, device_model, config, workspace(tmp_path / "out"))
    assert error.value.hint


def test_a_model_without_a_tower_cannot_be_asked_about_images(
    made: Any, answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, device_model, _ = made("none", "onnxruntime")
    blind = dataclasses.replace(model.config(), vision=None)
    monkeypatch.setattr(QuantizedModel, "config", lambda self: blind)
    with pytest.raises(StageError, match="has no tower") as error:
        answering.evaluation(model, device_model, tmp_path / "out")
    assert "validate=parity" in error.value.hint


def test_prompts_that_leave_no_room_are_all_named(made: Any, answering: Answering, tmp_path: Path) -> None:
    """The float model has no context to run out of; the files have, and lines are told by their numbers."""
    model, device_model, _ = made("int8", "onnxruntime")
    lines = (answering.path / "own/questions.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    context = int(device_model.description()["context"])
    long = [json.dumps({**json.loads(line), "question": "read the word " * context}) for line in lines[1:]]
    (tmp_path / "own").mkdir()
    for line in lines:
        name = json.loads(line)["image"]
        shutil.copyfile(answering.path / "own" / name, tmp_path / "own" / name)
    (tmp_path / "own/questions.jsonl").write_text("\n".join([lines[0], *long]) + "\n", encoding="utf-8")
    config = QuestionsConfig(str(tmp_path / "own"), None, 1, {"words": "exact", "letters": "cer"})
    other = dataclasses.replace(answering, baseline=asked(answering.checkpoint, config, tmp_path / "baseline"))
    with pytest.raises(StageError) as error:
        other.evaluation(model, device_model, tmp_path / "evaluation")
    assert "line 2" in error.value.message and "line 3" in error.value.message
    assert "line 1:" not in error.value.message and "convert.context" in error.value.hint
