"""What would help where a gate fails: what it promises comes true when it is followed."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from stages.artifacts import Evaluation, QuantizedModel
from stages.data.asked import read_asked
from stages.evaluation.advice import advise
from stages.evaluation.alternatives import alternatives, parts_of
from stages.evaluation.gates import check_budgets, check_gates
from stages.evaluation.names import PREDICTED
from stages.quantizers.replaced import Measured, ReplacedModel
from stages.schema import Budgets, Gate, Prediction
from tests.answering import Answering, workspace
from tests.conf import group
from tests.rounded import edited

MIB = 2**20
HELP = re.compile(
    r"(?P<part>.+) in (?P<kind>int8|float16): (?P<points>[+-][\d.]+) points of exact answers on (?P<count>\d+) "
    r"questions, "
    r"divergence (?P<divergence>[+-][\d.e-]+), for (?P<cost>[\d.e-]+) MiB \((?P<setting>.+)\)"
)
RETENTION = Gate("retention_low", None, 0.999, None)
UP = "text.layers.1.mlp.up_proj.weight"
COARSE: dict[str, dict[str, Any]] = {  # what is coarse: and the rest is not
    "the output head": {"head": 2},
    "the embeddings": {"embeddings": 2},
    "the decoder's attention": {"overrides": [{"pattern": "*.self_attn.*", "bits": 2, "group_size": 0}]},
    "the decoder's feed-forward": {"overrides": [{"pattern": "*.mlp.*", "bits": 2, "group_size": 0}]},
    "the projector": {"overrides": [{"pattern": "projector.*", "bits": 2, "group_size": 0}]},
}


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Answering:
    return Answering.of(tmp_path_factory.mktemp("answering"))


@pytest.fixture(scope="module")
def coarse(answering: Answering) -> Callable[[str], QuantizedModel]:
    """In int8, but for one part; or "all", in int4."""

    @cache
    def make(part: str) -> QuantizedModel:
        name, changes = ("int4", {"method": "rtn", "embeddings": 4}) if part == "all" else ("int8", COARSE[part])
        return quantized(answering, name, changes, f"coarse-{part}")

    return make


def quantized(answering: Answering, name: str, changes: dict[str, Any], folder: str) -> QuantizedModel:
    path = answering.path / folder.replace(" ", "-")
    path.mkdir()
    return Answering(path, answering.checkpoint, answering.baseline).quantized(name, **changes)


def advised(
    answering: Answering, model: QuantizedModel, gates: list[dict[str, Any]], path: Path, **options: Any
) -> list[dict[str, Any]]:
    evaluation = options.get("evaluation", Evaluation(path))
    if options.get("measure", True):
        questions = list(read_asked(answering.baseline.path))
        measured = alternatives(answering.checkpoint, model, questions, workspace(path / "work"))
        evaluation.write_json("alternatives.json", measured)
    metrics = options.get("metrics", {"tasks": {}})
    return advise(gates, metrics, evaluation, model, options.get("device", group("device", "pixel-8")))


def failing(*metrics: str) -> list[dict[str, Any]]:
    """Gates of which all fail, on tasks and on the whole."""
    kept = {"retention_low": 0.5, "n": 27}
    found = {"tasks": {"words": kept, "letters": kept}, "overall": kept, "fidelity": {"kl": 9.0}, "parity": {}}
    gates = {"retention_low": RETENTION, "fidelity.kl": Gate("fidelity.kl", None, None, 0.1)}
    return check_gates(found, [gates[name] for name in metrics], Prediction.worst)


def judged(answering: Answering, model: QuantizedModel) -> Measured:
    """Of a quantized model in torch, on all questions."""
    store = model.store()
    weights = {
        name: torch.from_numpy(store.dense(name)) for name in store.names() if store.format(name).format != "float"
    }
    return ReplacedModel(answering.checkpoint, list(read_asked(answering.baseline.path)), batch=32).measured(weights)


def size_of(model: QuantizedModel) -> int:
    return sum(model.store().format(name).bytes for name in model.store().names())


@pytest.mark.parametrize("part", COARSE)
def test_the_coarse_part_is_named_first(part: str, coarse: Any, answering: Answering, tmp_path: Path) -> None:
    found = advised(answering, coarse(part), failing("retention_low"), tmp_path)
    helps = [gate["help"] for gate in found]
    assert helps[0] == helps[1] and 1 <= len(helps[0]) <= 3
    first = HELP.fullmatch(helps[0][0])
    assert first and first["part"] == part and first["kind"] == "int8"


@pytest.mark.parametrize("part", ["the output head", "the decoder's attention", "all"])
def test_what_is_promised_comes_true(part: str, coarse: Any, answering: Answering, tmp_path: Path) -> None:
    """The setting, applied to the same quantization, gives the gain and costs the bytes that the sentence tells."""
    model = coarse(part)
    (gate,) = advised(answering, model, failing("fidelity.kl"), tmp_path)
    promise = HELP.fullmatch(gate["help"][0])
    assert promise, gate["help"]
    changes = OmegaConf.to_container(OmegaConf.from_dotlist([promise["setting"]]))["quantize"]
    base = {"method": "rtn", "embeddings": 4} if part == "all" else {"method": "rtn", **COARSE[part]}
    if "overrides" in changes:
        changes["overrides"] = base.get("overrides", []) + changes["overrides"]
    better = quantized(answering, "int4" if part == "all" else "int8", {**base, **changes}, f"better-{part}")
    before, after = judged(answering, model), judged(answering, better)
    assert int(promise["count"]) == answering.baseline.metrics()["questions"]["count"]
    assert after.kl - before.kl == pytest.approx(float(promise["divergence"]), rel=0.15)
    one = 100 / int(promise["count"])
    assert 100 * (after.accuracy - before.accuracy) == pytest.approx(float(promise["points"]), abs=2 * one + 0.06)
    assert size_of(better) - size_of(model) == pytest.approx(float(promise["cost"]) * MIB, rel=0.06)


def test_the_best_comes_first(coarse: Any, answering: Answering, tmp_path: Path) -> None:
    (gate,) = advised(answering, coarse("all"), failing("fidelity.kl"), tmp_path)
    found = [match for match in map(HELP.fullmatch, gate["help"]) if match]
    assert len(found) == len(gate["help"])
    points = [float(match["points"]) for match in found]
    assert points == sorted(points, reverse=True)
    assert all(float(match["divergence"]) < 0 or float(match["points"]) > 0 for match in found)


def test_parts_are_all_that_is_quantized_and_cost_what_they_say(coarse: Any, answering: Answering) -> None:
    model = coarse("all")
    parts, store = parts_of(model), model.store()
    names = [name for part in parts for name in part.names]
    assert len(names) == len(set(names))
    assert set(names) == {name for name in store.names() if store.format(name).format != "float"}
    for part in parts:
        assert part.size == sum(store.format(name).bytes for name in part.names) < part.larger
        bits = {store.format(name).bits for name in part.names}
        assert (bits == {4} and part.kind == "int8") or (bits == {8} and part.kind == "float16")


def test_where_nothing_is_measured_a_way_is_named(coarse: Any, answering: Answering, tmp_path: Path) -> None:
    for gate in advised(answering, coarse("all"), failing("retention_low"), tmp_path, measure=False):
        assert gate["help"] == [
            "quantize.bits=8, or quantize=auto with a larger quantize.budget, keeps more of the answers"
        ]


def test_gates_stay_as_they_are_and_those_that_passed_get_no_help(
    coarse: Any, answering: Answering, tmp_path: Path
) -> None:
    gates = check_gates({"tasks": {}, "size_bytes": 9}, [Gate("size_bytes", None, 1, 10)], Prediction.worst)
    gates += failing("retention_low")
    found = advised(answering, coarse("all"), gates, tmp_path, measure=False)
    assert [{key: value for key, value in gate.items() if key != "help"} for gate in found] == gates
    assert [bool(gate.get("help")) for gate in found] == [not gate["passed"] for gate in gates]


@pytest.mark.parametrize("factor", [1.1, 0.9])
def test_scale_error_names_the_damaged_layer(factor: float, coarse: Any, answering: Answering, tmp_path: Path) -> None:
    damaged = edited(coarse("all"), tmp_path / "damaged", f"{UP}.scales", lambda scales: scales * factor)
    here = Answering(tmp_path, answering.checkpoint, answering.baseline)
    evaluation = here.evaluation(damaged, here.device_model("onnxruntime", damaged, "damaged"), tmp_path / "evaluation")
    gate = next(each for each in group("validate", "default").gates if each.metric == "fidelity.scale_error")
    gates = check_gates(evaluation.metrics(), [gate], Prediction.worst)
    (found,) = advised(answering, damaged, gates, tmp_path, evaluation=evaluation)
    assert not found["passed"] and f"the worst is {UP}: its scales are off by" in found["help"][0]
    (percent,) = re.findall(r"by ([\d.]+)%", found["help"][0])
    assert float(percent) == pytest.approx(10, abs=3)


def test_a_size_says_how_much_and_where_it_lies(coarse: Any, answering: Answering, tmp_path: Path) -> None:
    model = coarse("all")
    metrics = {"tasks": {}, "size_bytes": 3 * MIB}
    gates = check_gates(metrics, [Gate("size_bytes", None, None, 2 * MIB)], Prediction.worst)
    gates += check_budgets(metrics, Budgets(2.5, None, None, None, None), Prediction.worst)
    first, second = advised(answering, model, gates, tmp_path, metrics=metrics)
    assert first["help"][0].startswith("1.00 MiB too large; in MiB, ")
    assert second["help"][0].startswith("0.50 MiB too large; in MiB, ")
    assert f"quantize.budget.bytes={int(2 * MIB * 0.95)}" in first["help"][1]
    shares = {
        words: float(size) for words, size in re.findall(r"(?:MiB, |, )([^,]+) ([\d.]+)(?=,|$)", first["help"][0])
    }
    store = model.store()
    tower = sum(store.format(name).bytes for name in store.names() if name.startswith("vision."))
    assert shares["the tower"] == pytest.approx(tower / MIB, abs=0.006)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


@pytest.mark.parametrize(
    ("metric", "kind", "bound", "middle"),
    [
        ("predicted.token_ms", "max", 2.5, True),
        ("predicted.token_ms", "max", 1.9, False),
        ("predicted.tokens_per_s", "min", 400, True),
        ("predicted.tokens_per_s", "min", 600, False),
        ("budget.memory_mib", "max", 210, True),
        ("budget.memory_mib", "max", 190, False),
    ],
)
def test_of_a_prediction_it_says_whether_the_middle_would_pass(
    metric: str, kind: str, bound: float, middle: bool, coarse: Any, answering: Answering, tmp_path: Path
) -> None:
    predicted = {
        "token_ms": {"value": 2.0, "low": 1.5, "high": 3.0},
        "tokens_per_s": {"value": 500.0, "low": 333.0, "high": 666.0},
        "peak_memory_mib": {"value": 200.0, "low": 150.0, "high": 260.0},
    }
    assert predicted.keys() <= set(PREDICTED)
    metrics = {"tasks": {}, "size_bytes": 1, "predicted": predicted}
    if metric == "budget.memory_mib":
        gates = check_budgets(metrics, Budgets(None, bound, None, None, None), Prediction.worst)
    else:
        gates = check_gates(metrics, [Gate(metric, None, **{"min": None, "max": None, kind: bound})], Prediction.worst)
    (gate,) = advised(answering, coarse("all"), gates, tmp_path, metrics=metrics)
    said = " ".join(gate["help"])
    assert not gate["passed"] and "search=nsga2" in said
    assert ("the middle of the predicted interval" in said) == middle


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("parity.top1", "the conversion or the runtime, not in quantization"),
        ("fidelity.vocabulary", "tokenizer.json"),
        ("fidelity.prompts", "tokenizer.json or prompt"),
        ("fidelity.pixels", "preprocessing.json"),
    ],
)
def test_what_is_not_quantization_says_where_to_look(
    metric: str, words: str, coarse: Any, answering: Answering, tmp_path: Path
) -> None:
    part, name = metric.split(".")
    bound = Gate(metric, None, None, -1.0) if name == "pixels" else Gate(metric, None, 2.0, None)
    gates = check_gates({"tasks": {}, part: {name: 0.5}}, [bound], Prediction.worst)
    (gate,) = advised(answering, coarse("all"), gates, tmp_path)
    assert words in gate["help"][0]
