"""tapeout run."""

import json
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from PIL import Image

from pipelines.errors import ConfigError, StageError, TapeoutError
from pipelines.project import Project
from stages.runtimes.command import run


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """x (2, 3) and row (1,) -> total = x + table[row] and, each call, count + 1."""
    specs = [
        mb.TensorSpec((2, 3), types.fp32),
        mb.TensorSpec((1,), types.int32),
        mb.StateTensorSpec((1,), types.fp16),
    ]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, row, memory):
        table = np.arange(12, dtype=np.float32).reshape(4, 3)
        total = mb.add(x=x, y=mb.gather(x=table, indices=row, axis=0), name="total")
        more = mb.add(x=mb.read_state(input=memory), y=np.float16(1))
        return total, mb.identity(x=mb.coreml_update_state(state=memory, value=more), name="count")

    return save(program, tmp_path_factory.mktemp("command") / "adder.mlpackage")


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp32)], opset_version=ct.target.iOS18)
    def program(x):
        noise = mb.random_normal(shape=np.int32([1, 4]), name="noise")
        return mb.mul(x=mb.random_uniform(shape=np.int32([1, 4]), name="more"), y=mb.add(x=x, y=noise))

    return save(program, tmp_path_factory.mktemp("command") / "odd.mlpackage")


def save(program, path: Path) -> Path:
    ct.convert(
        program, minimum_deployment_target=ct.target.iOS18, pass_pipeline=ct.PassPipeline.EMPTY, skip_model_load=True
    ).save(str(path))
    return path


def call(*arguments) -> int:
    return run([str(argument) for argument in arguments], Project(Path.cwd()))


def test_inputs_from_everywhere_and_outputs_as_files(package, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    arguments = (package, "--input", f"x={tmp_path / 'x.npy'}", "--input", "row=[2]", "--steps", 3)
    assert call(*arguments, "--output", tmp_path / "out") == 0
    assert (np.load(tmp_path / "out/total.npy") == [[7, 8, 9]] * 2).all()
    assert np.load(tmp_path / "out/count.npy") == 3  # the state goes on from step to step
    shown = capsys.readouterr().out
    for line in (
        "input   x: (2, 3) float32",
        "state   memory: (1,) float16",
        "total: (2, 3) float32  min 7  max 9  mean 8",
    ):
        assert line in shown
    assert call(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outputs"]["total"]["mean"] == 8 and found["outputs"]["count"]["shape"] == [1]


def test_random_inputs_are_those_of_the_seed(package, capsys):
    def means(*arguments) -> float:
        assert call(package, "--input", "x", "--input", "row=random", "--json", *arguments) == 0
        return json.loads(capsys.readouterr().out)["outputs"]["total"]["mean"]

    assert means() == means("--seed", 0) != means("--seed", 1)


def test_the_operators_are_listed(package, odd, capsys):
    assert call(package, "--operators") == 0
    assert "     2 add\n" in capsys.readouterr().out
    assert call(odd, "--operators", "--json") == 1
    unknown = json.loads(capsys.readouterr().out)["functions"]["main"]["unknown"]
    assert unknown == {"random_normal": ["noise"], "random_uniform": ["more"]}


def test_unknown_operators_are_all_named_and_where(odd):
    with pytest.raises(StageError, match=r"random_normal \(at 'noise'\), random_uniform \(at 'more'\)") as error:
        call(odd, "--input", "x")
    assert error.value.exit_status == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"needs x: \(2, 3\) float32; row: \(1,\) int32\n.*--input x=random --input row=random"),
        (("--input", "x"), r"needs row: \(1,\) int32"),
        (("--input", "x", "--input", "raw=[1]"), r"has no input 'raw'\n  did you mean 'row'\?"),
        (("--input", "x=[1, 2]", "--input", "row"), r"'x' has shape \(2,\); it takes \(2, 3\) float32"),
        (("--input", "x", "--input", "row=[0.5]"), r"'row' holds fractions; it takes \(1,\) int32"),
        (("--input", "x=[1, 2", "--input", "row"), r"x=\[1, 2 is no JSON"),
        (("--input", "x=there.npy", "--input", "row"), r"x=there.npy: there is no such file"),
        (("--input", "x", "--input", "row=[99]"), r"\(gather\) cannot be computed: index 99 is out of bounds"),
        (("--function", "mian"), r"has no function 'mian'\n  did you mean 'main'\?"),
        (("--precision", "int8"), r"invalid choice: 'int8'"),
        (("--steps", "0"), r"--steps takes 1 or more"),
    ],
)
def test_mistakes_are_one_clear_message(package, arguments, message):
    with pytest.raises(ConfigError) as error:
        call(package, *arguments)
    assert error.match(f"(?s){message}") and error.value.exit_status == 2


def test_paths_that_are_no_package(tmp_path):
    (tmp_path / "empty.mlpackage").mkdir()
    (tmp_path / "file.mlpackage").touch()
    for name, message in {
        "nowhere.mlpackage": "is not there",
        "file.mlpackage": "is a file",
        "empty.mlpackage": "Manifest.json is missing",
        "model.onnx": "ONNX Runtime runs it",
    }.items():
        with pytest.raises(ConfigError, match=message):
            call(tmp_path / name)


def test_a_picture_goes_in(tmp_path, capsys):
    @mb.program(input_specs=[mb.TensorSpec((1, 3, 4, 4), types.fp32)], opset_version=ct.target.iOS16)
    def program(picture):
        return mb.reduce_mean(x=picture, axes=[2, 3], name="colour")

    types_ = [ct.ImageType("picture", (1, 3, 4, 4), color_layout=ct.colorlayout.BGR)]
    ct.convert(program, inputs=types_, minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(
        str(tmp_path / "picture.mlpackage")
    )
    Image.new("RGB", (4, 4), (250, 100, 0)).save(tmp_path / "orange.png")
    arguments = (tmp_path / "picture.mlpackage", "--input", f"picture={tmp_path / 'orange.png'}", "--output", tmp_path)
    assert call(*arguments) == 0
    assert np.abs(np.load(tmp_path / "colour.npy") - [0, 100, 250]).max() <= 1
    assert "BGR image (1, 3, 4, 4)" in capsys.readouterr().out


def test_core_ml_itself_needs_a_mac(package):
    with pytest.raises(TapeoutError, match="Core ML runs on macOS only") as error:
        call(package, "--input", "x", "--input", "row", "--backend", "native")
    assert "--backend reference" in error.value.hint
