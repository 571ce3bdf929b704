"""The Neural Engine report: for each rule a tiny program that breaks it, and one that does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var, types

from stages.devices.chips import CHIPS, chip_of, on_chip
from stages.devices.neural_engine import Finding, inspect, inspect_program
from stages.devices.neural_engine_rules import RULES
from stages.lowering.coreml import lower_coreml
from stages.lowering.coreml.builder import FunctionBuilder, FunctionSpec
from stages.lowering.coreml.package import save_package
from stages.lowering.coreml.weights import WeightBank
from stages.quantizers.store import QuantizedStore, StoreWriter
from tests.rounded import rounded
from tests.toy import toy_checkpoint

Body = Callable[[Var], Var]
IMAGE = (1, 3, 32, 32)


def half(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float16)


def integers(kind: str, *shape: int) -> np.ndarray:
    return np.zeros(shape, np.int8 if kind[0] == "i" else np.uint8).view(
        types.nptype_from_builtin(getattr(types, kind))
    )


def blocks(columns: int) -> Body:
    def body(x: Var) -> Var:
        weight = mb.constexpr_blockwise_shift_scale(data=integers("int4", 32, 32), scale=half(32, columns))
        return mb.matmul(x=x, y=weight)

    return body


def palette(scaled: bool) -> Body:
    def body(x: Var) -> Var:
        weight = mb.constexpr_lut_to_dense(indices=integers("uint4", 32, 32), lut=half(1, 1, 16, 1))
        if scaled:
            weight = mb.constexpr_blockwise_shift_scale(data=weight, scale=half(32, 1))
        return mb.matmul(x=x, y=weight)

    return body


def quantized(x: Var) -> Var:
    codes = mb.quantize(input=x, scale=np.float16(0.1), output_dtype="int8")
    return mb.dequantize(input=codes, scale=np.float16(0.1))


# rule: (shape of the input, a body that breaks it, shape, a body that does not)
CASES: dict[str, tuple[tuple[int, ...], Body, tuple[int, ...], Body]] = {
    "dtype": (IMAGE, lambda x: mb.relu(x=mb.cast(x=x, dtype="fp32")), IMAGE, lambda x: mb.relu(x=x)),
    "last-axis": (
        IMAGE,
        lambda x: mb.transpose(x=x, perm=[0, 2, 3, 1]),
        IMAGE,
        lambda x: mb.transpose(x=x, perm=[0, 1, 3, 2]),
    ),
    "linear": (
        IMAGE,
        lambda x: mb.linear(x=x, weight=half(32, 32), bias=half(32)),
        IMAGE,
        lambda x: mb.conv(x=x, weight=half(8, 3, 1, 1)),
    ),
    "kernel-width": (
        IMAGE,
        lambda x: mb.conv(x=x, weight=half(8, 3, 1, 14), pad_type="same"),
        IMAGE,
        lambda x: mb.conv(x=x, weight=half(8, 3, 14, 13), pad_type="same"),
    ),
    "side": (
        (1, 1, 32, 128),
        lambda x: mb.tile(x=x, reps=[1, 1, 1, 129]),
        (1, 1, 32, 128),
        lambda x: mb.tile(x=x, reps=[1, 1, 1, 128]),
    ),
    "wide-head": (
        (1, 1, 32),
        lambda x: mb.linear(x=x, weight=half(16385, 32)),
        (1, 1, 32),
        lambda x: mb.linear(x=x, weight=half(9496, 32)),
    ),
    "infinite-mask": (
        IMAGE,
        lambda x: mb.add(x=x, y=np.float16(-np.inf)),
        IMAGE,
        lambda x: mb.add(x=x, y=np.float16(-40000)),
    ),
    "block-weights": (IMAGE, blocks(2), IMAGE, blocks(1)),
    "scaled-palette": (IMAGE, palette(True), IMAGE, palette(False)),
    "int8-compute": (IMAGE, quantized, IMAGE, lambda x: mb.relu(x=x)),
}


def program(path: Path, shape: tuple[int, ...], body: Body, states: dict[str, tuple[int, ...]] | None = None) -> Any:
    """(the package's Model proto, its path)."""
    path.mkdir()
    with StoreWriter(path) as writer:
        writer.add_float("nothing", half(1))
    spec = FunctionSpec(
        "main",
        "A test.",
        {"x": (shape, "float16", "x")},
        {"y": (shape, "float16", "y")},
        {name: (size, "float16", name) for name, size in (states or {}).items()},
    )
    bank = WeightBank(QuantizedStore.open(path))
    with FunctionBuilder(spec, bank) as builder:
        for name in states or {}:
            mb.coreml_update_state(state=builder.inputs[name], value=mb.read_state(input=builder.inputs[name]))
        builder.finish([body(builder.inputs["x"])])
    return save_package(path / "x.mlpackage", [builder], bank), path / "x.mlpackage"


def rules_of(findings: list[Finding]) -> set[str]:
    return {finding.rule for finding in findings}


@pytest.mark.parametrize("rule", CASES)
def test_a_program_that_breaks_a_rule_and_one_that_does_not(rule, tmp_path):
    bad_shape, bad, good_shape, good = CASES[rule]
    broken, path = program(tmp_path / "bad", bad_shape, bad)
    whole, _ = program(tmp_path / "good", good_shape, good)
    found = {finding.rule: finding for finding in inspect_program(broken, "A16")}
    assert rule in found and rule not in rules_of(inspect_program(whole, "A16"))
    assert found[rule].risk.endswith(".") and found[rule].source and found[rule].operation
    assert rules_of(inspect(path, "A16")) == set(found)  # of the package alone, the same


@pytest.mark.parametrize(("size", "broken"), [((1, 2, 60, 64), True), ((1, 2, 64, 24), True), ((1, 2, 64, 64), False)])
def test_sizes_of_states(size, broken, tmp_path):
    model, _ = program(tmp_path / "state", IMAGE, lambda x: mb.relu(x=x), {"cache": size})
    findings = [finding for finding in inspect_program(model) if finding.rule == "state-size"]
    assert bool(findings) == broken
    assert not broken or (findings[0].source == "coremltools#2631" and findings[0].operation == "cache")


def test_ranks(tmp_path):
    model, _ = program(tmp_path / "rank", (2, 2, 2, 4, 32), lambda x: mb.relu(x=x))
    assert "rank" not in rules_of(inspect_program(model))
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    relu = next(operation for operation in block.operations if operation.type == "relu")
    relu.outputs[0].type.tensorType.dimensions.add().constant.size = 32  # coremltools itself refuses to write it
    assert "rank" in rules_of(inspect_program(model))


def test_shapes_that_vary(tmp_path):
    model, _ = program(tmp_path / "static", IMAGE, lambda x: mb.relu(x=x))
    assert "static-shape" not in rules_of(inspect_program(model))
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    relu = next(operation for operation in block.operations if operation.type == "relu")
    relu.outputs[0].type.tensorType.dimensions[0].unknown.variadic = False
    assert "static-shape" in rules_of(inspect_program(model))


@pytest.mark.parametrize(
    ("rows", "kind", "broken"), [(2_000_000, "FLOAT16", True), (1_000, "FLOAT16", False), (9_000_000, "UINT6", False)]
)
def test_weights_of_a_package(rows, kind, broken, tmp_path):
    """By the types that the program declares: a gigabyte is not written for it."""
    model, _ = program(tmp_path / "size", IMAGE, lambda x: mb.linear(x=x, weight=half(64, 32), bias=half(64)))
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    for operation in block.operations:
        value = operation.attributes["val"]
        if operation.type == "const" and value.WhichOneof("value") == "blobFileValue":
            tensor = value.type.tensorType
            tensor.dataType = tensor.DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_name[kind].number
            tensor.dimensions[0].constant.size = rows * 16
    assert ("package-size" in rules_of(inspect_program(model))) == broken


def test_every_rule_is_tested():
    assert {rule.name for rule in RULES} == {*CASES, "rank", "state-size", "static-shape", "package-size"}
    assert len(RULES) == len({rule.name for rule in RULES})


@pytest.mark.parametrize(
    ("chip", "risk"),
    [("A17 Pro", None), ("M4 Max", None), ("A16", "not faster than float16 on A16"), ("A18", "that is not known")],
)
def test_a_chip_decides(chip, risk, tmp_path):
    model, _ = program(tmp_path / "int8", IMAGE, quantized)
    found = [finding.risk for finding in inspect_program(model, chip) if finding.rule == "int8-compute"]
    assert (not found) if risk is None else risk in found[0]


@pytest.mark.parametrize("chip", ["A17 Pro", "M4 Max", "A16", "A18", ""])
def test_findings_of_no_chip_in_particular_are_told_for_one(chip, tmp_path):
    """A conversion is shared by devices of many chips; what is found for one is what inspecting for it finds."""
    model, _ = program(tmp_path / "int8", IMAGE, quantized)
    shared = [finding.to_dict() for finding in inspect_program(model)]
    assert on_chip(shared, chip) == [finding.to_dict() for finding in inspect_program(model, chip)]
    assert any(finding["rule"] == "int8-compute" for finding in shared)


def test_what_is_not_known_of_a_chip_stays_unknown():
    assert chip_of("A17 Pro") is CHIPS["A17 Pro"] and chip_of("M4 Pro") is CHIPS["M4"]
    assert chip_of("Z80").int8_compute is None and chip_of("").int8_compute is None


def test_findings_of_a_model_name_its_lines_and_are_counted(tmp_path):
    model = rounded(toy_checkpoint(tmp_path / "checkpoint"), tmp_path / "quantized", bits=4, embeddings=8)
    options = {"context": 64, "prefill_chunk": 8}
    risks = lower_coreml(model.config(), model.store(), tmp_path / "out", **options)["risks"]
    found = {(risk["rule"], risk["line"].partition(" ")[0].rpartition(":")[0]) for risk in risks}
    assert ("linear", "stages/models/qwen2.py") in found and ("last-axis", "stages/models/fastvit.py") in found
    assert "block-weights" in {risk["rule"] for risk in risks}
    assert not any(risk["line"].startswith("/") for risk in risks)
    places = [(risk["rule"], risk["line"] or risk["operator"], risk["package"]) for risk in risks]
    assert len(places) == len(set(places))
    down = next(risk for risk in risks if risk["rule"] == "linear" and "self.down_proj" in risk["line"])
    assert down["count"] == 12 and down["package"] == "decoder.mlpackage"  # 3 on the line, 2 layers, prefill and decode
    content = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("model.mlmodel"))
    assert b"qwen2.py" not in content
    alone = inspect(tmp_path / "out" / "decoder.mlpackage", "A17 Pro")
    assert rules_of(alone) == {risk["rule"] for risk in risks if risk["package"] == "decoder.mlpackage"}
