"""A stage that is one for all devices and is given the profiles of all."""

import pytest

from tests.pipelines.toy import Toy, add_dvc

PIPELINE = """
schemas: toystages.schema.SCHEMAS
stages:
  load: {run: toystages.load.load, config: model, sources: {path: ["*.txt"]}}
  search:
    run: toystages.search.search
    needs: {checkpoint: load}
    devices: true
    device_fields: [name, runtime]
    check: toystages.checks.once
"""
SEARCH = """
from toystages.folder import Folder
from toystages.schema import Device


def search(checkpoint: Folder, devices: dict[str, Device], work):
    assert all(isinstance(device, Device) for device in devices.values())
    text = " ".join(f"{name}:{device.name}:{device.runtime}" for name, device in devices.items())
    (work.out / "found.txt").write_text(text)
"""
CHECKS = """
from pathlib import Path


def once(config, device):
    assert device is None
    with open("checks.txt", "a") as file:
        file.write("x")
"""


@pytest.fixture
def searching(toy: Toy) -> Toy:
    toy.write("conf/pipeline/main.yaml", PIPELINE)
    toy.write("toystages/search.py", SEARCH)
    toy.write("toystages/checks.py", CHECKS)
    return toy


def test_it_is_given_all_profiles_by_name(searching: Toy) -> None:
    result = searching.build("device=[watch,phone]")
    assert result.status == 0, result.err
    assert set(result.nodes) == {"load", "search"}
    assert searching.files()["build/search/found.txt"] == b"phone:phone:a watch:watch:b"
    assert (searching.root / "checks.txt").read_text() == "x"


def test_its_key_holds_what_it_may_read(searching: Toy) -> None:
    assert searching.build("device=[watch,phone]").status == 0
    assert searching.build("device=[phone,watch]").nodes["search"] == "cached"  # the order is nothing to it
    assert searching.build("device=[watch,phone]", "device.phone.budget=7").nodes["search"] == "cached"
    runtime = searching.build("device=[watch,phone]", "device.phone.runtime=c")
    assert runtime.nodes["search"] == "built"
    assert runtime.why["search"] == "device.phone.runtime a -> c"
    fewer = searching.build("device=[watch]")
    assert fewer.nodes["search"] == "built"
    assert fewer.why["search"].startswith("device.phone removed")
    assert "device.watch.runtime" in searching.run("explain", "search", "device=[watch]").out


def test_reading_another_field_is_an_error(searching: Toy) -> None:
    searching.edit("toystages/search.py", "{device.runtime}", "{device.budget}")
    result = searching.build()
    assert result.status == 1
    assert "reads devices['phone'].budget" in result.err and "device_fields: [..., budget]" in result.err


def test_dvc_knows_what_it_depends_on(searching: Toy) -> None:
    add_dvc(searching)
    assert searching.build().status == 0
    text = (searching.root / "dvc.yaml").read_text()
    assert "device.phone.runtime" in text and "conf/device/tablet.yaml" in text
    assert "device.phone.budget" not in text
    assert searching.call("dvc", "status").out.strip() == "Data and pipelines are up to date."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("devices: true", "devices: true\n    per: device", "asks for the profiles of all devices"),
        ("devices: true", "devices: 1", "must be true or false"),
        ("[name, runtime]", "[name, runtme]", "did you mean 'runtime'"),
        ("checkpoint: load}", "devices: load}", "beside its inputs"),
    ],
)
def test_mistakes_are_told_before_anything_runs(old: str, new: str, message: str, searching: Toy) -> None:
    searching.edit("conf/pipeline/main.yaml", old, new)
    result = searching.run("plan")
    assert result.status == 2 and message in result.err, result.err


def test_a_function_that_wants_them_says_so(searching: Toy) -> None:
    searching.edit("conf/pipeline/main.yaml", "    devices: true\n    device_fields: [name, runtime]\n", "")
    result = searching.build()
    assert result.status == 1 and "give stage search `devices: true`" in result.err
