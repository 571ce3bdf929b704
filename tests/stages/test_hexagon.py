"""Context binaries for Hexagon: what is refused and how, and, where onnxruntime-qnn is installed, what is compiled."""

import hashlib
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipelines.errors import LoweringError
from stages.lowering.capture import capture_encoder
from stages.lowering.onnx.hexagon import COMPILER, PROVIDER, VERSION, compile_context, compile_encoder, run_context
from tests.converted import converted
from tests.rounded import rounded
from tests.toy import toy_checkpoint

CHIP, PART, ARCHITECTURE = "Snapdragon 8 Gen 3", "SM8650", 75


def installed() -> str:
    try:
        return metadata.version(COMPILER)
    except metadata.PackageNotFoundError:
        return ""


needs_compiler = pytest.mark.skipif(
    installed() != VERSION,
    reason=f"needs {COMPILER} {VERSION} (pip install 'tapeout[qnn]'), found {installed() or 'none'}",
)


def model_of(path: Path, operator: str, size: int | str = 4, domain: str = "") -> Path:
    """One operator over float32 (1, 3, size, size)."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, size, size)) for name in ("x", "y")]
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "one", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("chip", "message"),
    [
        ("SM8651", "did you mean 'SM8650'"),
        ("Snapdragon 8Gen 3", "did you mean 'Snapdragon 8 Gen 3'"),
        ("Snapdragon 888", "integers only"),
        ("Tensor G3", "Chips: Snapdragon 8 Gen 1 (SM8450)"),
    ],
)
def test_a_chip_that_is_not_in_the_table_is_refused_with_the_nearest(tmp_path, chip, message):
    with pytest.raises(LoweringError) as error:
        compile_context(model_of(tmp_path / "model.onnx", "Relu"), tmp_path / "out.onnx", chip)
    assert message in str(error.value)


@needs_compiler
@pytest.mark.parametrize(
    ("operator", "size", "message"),
    [("MatMulNBits", 4, "1 MatMulNBits"), ("GroupQueryAttention", 4, "fixed size"), ("Relu", "tokens", "x (tokens)")],
)
def test_what_the_decoder_has_is_refused_by_name(tmp_path, operator, size, message):
    domain = "" if operator == "Relu" else "com.microsoft"
    with pytest.raises(LoweringError) as error:
        compile_context(model_of(tmp_path / "model.onnx", operator, size, domain), tmp_path / "out.onnx", CHIP)
    assert message in str(error.value) and "CPU" in error.value.hint


@pytest.mark.skipif(bool(installed()), reason=f"{COMPILER} is installed")
def test_without_the_compiler_the_extra_is_named(tmp_path):
    with pytest.raises(LoweringError) as error:
        compile_context(model_of(tmp_path / "model.onnx", "Relu"), tmp_path / "out.onnx", CHIP)
    assert "tapeout[qnn]" in error.value.hint


@needs_compiler
@pytest.mark.parametrize("formats", [{"bits": 0, "embeddings": 0, "convolutions": 0}, {}], ids=["float16", "int8"])
def test_the_encoder_is_one_context_with_the_same_bytes_in_any_folder(tmp_path, formats):
    store = rounded(toy_checkpoint(tmp_path / "checkpoint"), tmp_path / "quantized", **formats)
    folders = [tmp_path / "one", tmp_path / "another" / "folder"]
    for folder in folders:
        folder.mkdir(parents=True)
        described = compile_encoder(store.config(), store.store(), folder, CHIP)
    written = contents(folders[0])
    assert written == contents(folders[1])
    assert sorted(written) == sorted([described["file"], described["context"]])
    assert described["bytes"] == (folders[0] / described["context"]).stat().st_size > 0
    assert [described[key] for key in ("provider", "soc", "architecture")] == [PROVIDER, PART, ARCHITECTURE]
    graph = onnx.load(folders[0] / described["file"]).graph
    assert {(node.domain, node.op_type) for node in graph.node} == {("com.microsoft", "EPContext")}
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "features"]


@needs_compiler
def test_the_binary_computes_what_onnx_runtime_does_in_float16(tmp_path):
    """In QNN's emulation of the Hexagon."""
    toy = converted(tmp_path)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    described = compile_encoder(toy.model.config(), toy.model.store(), tmp_path / "device", CHIP)
    found = run_context(tmp_path / "device" / described["file"], {"image": image})["features"][0]
    expected = toy.session.encode(image)
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < difference < 5e-3


def test_a_layer_beyond_float16_is_named_with_its_line(tmp_path):
    store = rounded(toy_checkpoint(tmp_path / "checkpoint"), tmp_path / "quantized")
    name = next(node.name for node in capture_encoder(store.config()).graph.nodes if "gelu" in node.name)
    with pytest.raises(LoweringError) as error:
        compile_encoder(store.config(), store.store(), tmp_path, CHIP, {"encoder": {name: 70000.0}})
    assert "70,000" in str(error.value) and "stages/models/fastvit.py" in str(error.value)


@needs_compiler
def test_a_node_left_to_the_cpu_fails_by_name_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(LoweringError) as error:
        compile_context(model_of(tmp_path / "model.onnx", "Erf"), out / "context.onnx", CHIP)
    assert "Erf" in str(error.value)
    assert not list(out.iterdir())
