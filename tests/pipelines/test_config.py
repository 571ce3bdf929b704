import json
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.pipelines.toy import Toy, add_dvc, make_toy

MISTAKES = [
    ("quantize.bit=8", ["quantize.bit=8", "did you mean 'bits'?", "group_size"]),
    ("+quantize.bit=8", ["conf/quantize/int4.yaml with +quantize.bit=8", "did you mean 'bits'?"]),
    ("quantise=int8", ["quantise=int8", "did you mean 'quantize'?"]),
    ("quantise.bits=8", ["quantise.bits=8", "did you mean 'quantize'?"]),
    ("quantize=int3", ["there is no conf/quantize/int3.yaml", "int4, int8"]),
    ("device=[phnoe]", ["there is no conf/device/phnoe.yaml", "did you mean 'phone'?", "phone, tablet, watch"]),
    ("device.phnoe.budget=2", ["device has no key 'phnoe'", "did you mean 'phone'?"]),
    (
        "device.watch.budget=3",
        ["watch is in conf/device, and is not among the chosen devices: phone, tablet", "device=[phone,tablet,watch]"],
    ),
    ("+device.watch.budget=3", ["+device.watch.budget=3: watch is in conf/device, and is not among", "tablet,watch]"]),
    ("device=[]", ["no device is chosen", "device=[NAME,...]"]),
    ("quantize.bits=four", ["quantize.bits: Value 'four'", "expected int"]),
    ("quantize.bits=null", ["quantize.bits", "expected int"]),
    ("quantize.bits=???", ["quantize.bits has no value", "quantize.bits=..."]),
    ("quantize.bits=${model.pth}", ["model.pth"]),
    ("quantize", ["'quantize' is not an override", "group=name"]),
    ("quantize.bits=[8", ["is not an override"]),
    ("model.path=~/q", ["'model.path=~/q' is not an override", "model.path=$HOME/q;", "\"model.path='~/q'\""]),
    ("model.path=~q", ["is not an override\n  a value that itself begins with ~", "\"model.path='~q'\""]),
    ("+colour=red", ["unknown key 'colour'"]),
    ("hydra.verbose=true", ["--config-dir"]),
    ("~quantize", ["stage quantize: there is no group 'quantize'"]),
    ("model.path=data/modle", ["model.path", "data/modle is not there", "did you mean 'model'?"]),
    ("executor.kind=locl", ["did you mean 'local'?"]),
    ("+device.phone.overrides.quantize.bitz=3", ["conf/device/phone.yaml: overrides: unknown key quantize.bitz"]),
    ("+device.phone.overrides.quantise.bits=3", ["there is no group 'quantise'", "did you mean 'quantize'?"]),
    ("pipeline=man", ["did you mean 'main'?"]),
    ("+pipeline.stages.load.neds={}", ["stage load: unknown key 'neds'", "did you mean 'needs'?"]),
    ("pipeline.stages.convert.needs.model=quantise", ["there is no such stage", "did you mean 'quantize'?"]),
    ("+pipeline.stages.load.needs={model: package}", ["one per device"]),
    ("+pipeline.stages.quantize.needs={a: convert}", ["in a circle: quantize, convert"]),
    ("pipeline.stages.load.run=toystages.load.laod", ["no function 'laod'", "did you mean 'load'?"]),
    ("pipeline.stages.load.run=toystages.laod.load", ["there is no module toystages.laod"]),
    ("pipeline.stages.load.libraries=[nunpy]", ["library 'nunpy' is not installed"]),
    ("pipeline.stages.convert.device_fields=[runtme]", ["did you mean 'runtime'?"]),
    ("pipeline.schemas=toystages.schema.SCHEMA", ["did you mean 'SCHEMAS'?"]),
    ("pipeline.stages.validate.per=phone", ["per is 'phone'"]),
    ("pipeline.stages.load.libraries=5", ["stage load: libraries is 5, and must be a list of names"]),
    ("pipeline.stages.load.sources={path: 5}", ["sources is {'path': 5}, and must be a mapping of keys to 'file'"]),
    ("pipeline.stages.load.sources={path: files}", ["and must be a mapping of keys to 'file', 'folder'"]),
    ("pipeline.stages.convert.device_fields=runtime", ["device_fields is 'runtime', and must be a list"]),
    ("pipeline.schemas=5", ["schemas is 5, and must be package.module.NAME"]),
    ("+pipeline.stages.load.reads=[/etc/*]", ["and must be a list of patterns, relative to the project"]),
    ("+pipeline.stages.load.gates=5", ["gates is 5, and must be the name of a file"]),
    ("device=null", ["device=null: device=[NAME,...] is needed", "phone, tablet, watch"]),
    ("device=[null]", ["device=[NAME,...] is needed"]),
    ("device=[phone,[tablet]]", ["device=[NAME,...] is needed"]),
    ("device=[phone,phone]", ["phone is named twice"]),
    ("device=[phone,all]", ["device=[phone,all]: 'all' is no device's name", "device=all on the command line"]),
    ("device=[base/chip]", ["base/chip is what profiles inherit from", "conf/device has: phone, tablet, watch"]),
    ("device=base/chip", ["base/chip is what profiles inherit from", "conf/device has: phone, tablet, watch"]),
    ("+device.all={name: all, runtime: a, budget: 1, overrides: {}}", ["no device can be called 'all'"]),
    ("quantize=null", ["quantize=null: one name is needed", "int4, int8"]),
    ("quantize=4", ["quantize=4: one name is needed", "int4, int8"]),
    ("quantize=[int4,int8]", ["one name is needed", "int4, int8"]),
    ("model=null", ["model=null: one name is needed", "reference"]),
    ("validate.noise=nan", ["conf/validate/default.yaml with validate.noise=nan: validate.noise is nan"]),
    ("validate.bound=-inf", ["validate.bound is -inf, which is not a finite number"]),
    ("+device.phone.overrides.validate.noise=nan", ["device.phone.overrides.validate.noise is nan"]),
    ("+device.phone.overrides.model.path=data", ["no stage that is per device uses model", "quantize, validate"]),
    ("+device.phone.overrides.executor.jobs=2", ["no stage that is per device uses executor"]),
    ("+device.phone.overrides.quantize=5", ["overrides.quantize is 5", "+device.phone.overrides.quantize.KEY=VALUE"]),
    ("device.phone.overrides=5", ["device.phone"]),
    ("tracking.kind=mlfow", ["tracking.kind=mlfow", "did you mean 'mlflow'?", "mlflow, none"]),
    ("executor.kind=ray", ["unknown key executor.jobs"]),
    ("executor.jobs=-1", ["executor.jobs is -1", "at least 1"]),
    ("executor.jobs=0", ["executor.jobs is 0"]),
    ("+device.build={name: build, runtime: a, budget: 1, overrides: {}}", ["artifacts/build is kept"]),
    ("+device.reference={name: reference, runtime: a, budget: 1, overrides: {}}", ["artifacts/reference is kept"]),
]


def test_a_key_that_another_override_takes_away(untouched: Toy) -> None:
    result = untouched.run("plan", "~model", "model.path=x")
    assert result.status == 2
    assert "model.path=x: 'model' is taken away by ~model\n  leave out one of the two" in result.err


def test_one_device_needs_no_brackets(untouched: Toy) -> None:
    assert untouched.run("plan", "device=phone").out == untouched.run("plan", "device=[phone]").out


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("config") / "toy")


@pytest.mark.parametrize(("override", "said"), MISTAKES)
def test_a_mistake_is_named_with_what_to_do(
    override: str, said: list[str], untouched: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["build", "--project", str(untouched.root), override])
    err = capsys.readouterr().err
    assert status == 2, err
    assert all(part in err for part in said), err
    assert "Traceback" not in err
    assert not (untouched.root / "artifacts").exists()


FILES = [
    (
        "conf/quantize/int4.yaml",
        "bits: 4\ngroupsize: 32\n",
        ["conf/quantize/int4.yaml: unknown key quantize.groupsize"],
    ),
    ("conf/quantize/int4.yaml", "bits: 4\n", ["quantize.group_size has no value"]),
    ("conf/quantize/int4.yaml", "bits: [4\n", ["not YAML"]),
    ("conf/device/phone.yaml", "name: phone\nruntime: a\n", ["'# @package device.NAME'"]),
    (
        "conf/device/phone.yaml",
        "# @package device.phone\nname: tablet\nruntime: a\nbudget: 1\noverrides: {}\n",
        ["'phone'"],
    ),
    ("conf/pipeline/main.yaml", "stages: {}\n", ["conf/pipeline/main.yaml: a pipeline needs `stages`"]),
    ("conf/config.yaml", "defaults: [{pipeline: main}, {modl: reference}]\n", ["conf/modl/reference"]),
    ("conf/config.yaml", "defaults: [{quantize: [int4, int8]}]\n", ["conf/config.yaml: quantize: ['int4', 'int8']"]),
]


@pytest.mark.parametrize(("name", "text", "said"), FILES)
def test_a_mistake_in_a_file_is_named(
    name: str, text: str, said: list[str], toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write(name, text)
    status = main(["plan", "--project", str(toy.root)])
    err = capsys.readouterr().err
    assert status == 2, err
    assert all(part in err for part in said), err


def test_outside_a_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--project", str(tmp_path)]) == 2
    assert "neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["biuld"], "did you mean 'build'?"),
        (["stage"], "needs a node's name"),
        (["stage", "quantise"], "did you mean 'quantize'?"),
        (["build", "--jobs", "0"], "at least one worker"),
        (["report", "foo=1"], "'tapeout report' has no use for: foo=1"),
        (["verify", "a", "b", "c"], "it comes before the command: tapeout --project DIR verify"),
        (["build", "--jsn"], "did you mean '--json'?"),
        ([], "build, builds, compare"),
        (["build", "--config-dir", "nowhere"], "no such folder"),
    ],
)
def test_a_mistake_in_the_command(
    words: list[str], said: str, untouched: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--project", str(untouched.root)]) == 2
    assert said in capsys.readouterr().err


def test_all_devices_are_those_of_conf_and_of_the_users_own_folders_now(toy: Toy, tmp_path: Path) -> None:
    profile = (toy.root / "conf/device/watch.yaml").read_text()
    toy.write("conf/device/base/chip.yaml", "budget: 3\n")  # inherited from, no device
    (tmp_path / "own" / "device").mkdir(parents=True)
    (tmp_path / "own" / "device" / "glasses.yaml").write_text(profile.replace("watch", "glasses"))
    own = ("--config-dir", str(tmp_path / "own"))
    chosen = "device=[glasses,phone,tablet,watch]"
    add_dvc(toy)
    assert toy.run("plan", "device=all", *own).out == toy.run("plan", chosen, *own).out
    assert toy.build("device=all", *own).status == 0
    assert json.loads(toy.run("builds", "--json").out)["builds"][0]["overrides"] == [chosen]
    assert chosen in (toy.root / "dvc.yaml").read_text() and "device=all" not in (toy.root / "dvc.yaml").read_text()
    assert set(toy.build(chosen, *own).nodes.values()) == {"cached"}
    toy.write("conf/device/watch2.yaml", profile.replace("watch", "watch2"))
    assert "package-watch2" in toy.build("device=all", *own).nodes  # no memory of what 'all' was stands in the way


def test_no_device_is_called_all(toy: Toy) -> None:
    toy.write("conf/device/all.yaml", "# @package device.all\nname: all\nruntime: a\nbudget: 1\noverrides: {}\n")
    result = toy.run("plan", "device=all")
    assert result.status == 2 and "conf/device/all.yaml: no device can be called 'all'" in result.err
