"""What a device loads: the .ort format, and weights laid out for its processor, ahead or not."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import LoweringError, StageError
from stages.artifacts import DeviceModel, QuantizedModel
from stages.lowering.onnx import lower_onnx
from stages.runtimes.ort import OnnxSession
from stages.runtimes.processor import check_machine, machine
from tests.rounded import rounded
from tests.toy import toy_checkpoint

PROJECT = Path(__file__).parents[2]
IDS = list(range(30, 50))
ROWS = np.zeros((20, 64), np.float32)
OTHER = "arm64" if machine() == "x86_64" else "x86_64"


def store_folder(path: Path) -> Path:
    rounded(toy_checkpoint(path / "checkpoint", tied=True), path / "quantized", bits=4)
    return path / "quantized"


def deployed(source: Path, out: Path, **options) -> DeviceModel:
    out.mkdir(parents=True)
    model = QuantizedModel(source)
    settings = {"context": 64, "accuracy_level": 1, **options}
    description = lower_onnx(model.config(), model.store(), out, **settings)
    DeviceModel(out).write_json("model.json", description)
    return DeviceModel(out)


def logits(model: DeviceModel, threads: int = 1) -> np.ndarray:
    session = OnnxSession(model, threads)
    return session.step(IDS, ROWS, 0, session.start())


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return store_folder(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory) -> np.ndarray:
    return logits(deployed(source, tmp_path_factory.mktemp("plain") / "device"))


@pytest.mark.parametrize("options", [{"format": "ort"}, {"prepacking": "off"}, {"prepacking": "saved"}])
def test_every_form_computes_the_same(tmp_path, source, expected, options):
    model = deployed(source, tmp_path / "device", **options)
    np.testing.assert_allclose(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_the_ort_format_lists_the_operators_of_a_reduced_build(tmp_path, source):
    model = deployed(source, tmp_path / "device", format="ort")
    names = {path.name for path in model.path.iterdir()}
    assert {"encoder.ort", "decoder.ort", "required_operators.config"} <= names
    assert not any(name.endswith((".onnx", ".data", ".partial")) for name in names)
    listed = (model.path / "required_operators.config").read_text()
    assert "com.microsoft;1;" in listed and "GroupQueryAttention" in listed and str(tmp_path) not in listed
    assert model.description()["files"] == {"encoder": "encoder.ort", "decoder": "decoder.ort"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"format": "ort"}, {"prepacking": "saved"}])
def test_same_bytes_in_any_process_and_folder(tmp_path, source, options):
    here, there = tmp_path / "here", tmp_path / "another/folder"
    deployed(source, here, **options)
    script = (
        "import sys, pathlib; from tests.stages.test_onnx_deploy import deployed; "
        f"deployed(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), **{options!r})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", script, str(source), str(there)], env=environment, check=True)
    names = {path.name for path in here.iterdir()}
    assert names == {path.name for path in there.iterdir()}
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name


def test_saved_prepacked_weights_are_refused_where_they_compute_something_else(tmp_path, source, expected):
    """ONNX Runtime 1.31 reads such a file with accuracy_level 4 without its scales; a later one may not."""
    try:
        model = deployed(source, tmp_path / "device", prepacking="saved", accuracy_level=4)
    except LoweringError as error:
        assert "prepacked" in error.message and "accuracy_level" in error.hint
    else:
        np.testing.assert_allclose(logits(model), expected, rtol=0.05, atol=0.05 * float(np.abs(expected).max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prepacking": "saved", "architecture": OTHER}, f"the device {OTHER}"),
        ({"prepacking": "saved", "format": "ort"}, ".ort format holds no saved"),
        ({"prepacking": "none"}, "no prepacking 'none'"),
        ({"format": "onx"}, "no format 'onx'"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(tmp_path, source, options, message):
    with pytest.raises(LoweringError) as error:
        deployed(source, tmp_path / "device", **options)
    assert message in error.value.message and error.value.hint


def test_prepacked_weights_are_not_opened_on_another_processor(tmp_path, source):
    model = deployed(source, tmp_path / "device", prepacking="saved")
    model.write_json("model.json", {**model.description(), "prepacked_for": OTHER})
    with pytest.raises(StageError, match="prepacked weights fit one kind of processor"):
        OnnxSession(model).start()


def test_one_processor_may_have_several_names():
    for name in {"x86_64": ("amd64", "AMD64", "x86-64"), "arm64": ("aarch64", "arm64-v8a")}.get(machine(), ()):
        check_machine(name)


def test_logits_of_the_last_tokens_alone(source, expected, tmp_path):
    session = OnnxSession(deployed(source, tmp_path / "device"))
    for keep in (1, 3):
        found = session.step(IDS, ROWS, 0, session.start(), keep=keep)
        np.testing.assert_allclose(found, expected[-keep:], rtol=1e-5, atol=1e-6)


def test_the_bits_do_not_depend_on_the_number_of_threads(source, expected, tmp_path):
    assert np.array_equal(logits(deployed(source, tmp_path / "device"), threads=2), expected)
