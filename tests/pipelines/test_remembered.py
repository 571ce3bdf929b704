"""A remembered configuration is used while nothing that it was made of has changed, and never after."""

import sys
from collections.abc import Callable

import pytest

from tests.pipelines.toy import Toy

CHANGES: dict[str, tuple[Callable[[Toy], object], str]] = {
    "a value": (lambda toy: toy.edit("conf/quantize/int4.yaml", "bits: 4", "bits: 5"), "bits 4 -> 5"),
    "a default": (lambda toy: toy.edit("conf/config.yaml", "{quantize: int4}", "{quantize: int8}"), "bits 4 -> 8"),
    "a device": (
        lambda toy: [toy.edit(f"conf/device/{name}.yaml", "budget: 1", "budget: 7") for name in ("phone", "tablet")],
        "budget 1 -> 7",
    ),
    "a type": (
        lambda toy: toy.edit("toystages/schema.py", "    group_size: int\n", "    group_size: int\n    new: int = 7\n"),
        "new added: 7",
    ),
    "an interpolation": (
        lambda toy: toy.edit("conf/quantize/int4.yaml", "bits: 4", "bits: ${quantize.group_size}"),
        "bits 4 -> 32",
    ),
}


def hydra_was_asked(toy: Toy, *words: str, env: dict[str, str] | None = None) -> bool:
    done = toy.call(sys.executable, "-X", "importtime", "-m", "pipelines.cli", "plan", *words, env=env)
    assert done.status == 0, done.err
    return any(line.rpartition("|")[2].strip() == "hydra" for line in done.err.splitlines())


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_seen(case: str, toy_built: Toy) -> None:
    change, reason = CHANGES[case]
    change(toy_built)
    for _ in range(2):
        assert reason in toy_built.run("plan").out


def test_hydra_is_asked_once_for_each_configuration(toy_built: Toy) -> None:
    assert not hydra_was_asked(toy_built)
    assert hydra_was_asked(toy_built, "quantize.bits=3")
    assert not hydra_was_asked(toy_built, "quantize.bits=3")


def test_another_choice_in_a_users_folder_is_seen(toy_built: Toy) -> None:
    toy_built.write("mine/quantize/own.yaml", "bits: 3\ngroup_size: 32\n")
    words = ["plan", "--config-dir", "mine", "quantize=own"]
    assert "bits 4 -> 3" in toy_built.run(*words).out
    toy_built.write("mine/quantize/own.yaml", "bits: 2\ngroup_size: 32\n")
    assert "bits 4 -> 2" in toy_built.run(*words).out


def test_what_reads_the_environment_is_not_remembered(toy_built: Toy) -> None:
    toy_built.edit("conf/quantize/int4.yaml", "bits: 4", "bits: ${oc.decode:${oc.env:BITS}}")
    for bits in ("6", "7"):
        assert f"bits 4 -> {bits}" in toy_built.run("plan", env={"BITS": bits}).out
        assert hydra_was_asked(toy_built, env={"BITS": bits})


def test_a_damaged_memory_is_not_believed(toy_built: Toy) -> None:
    for path in (toy_built.root / ".tapeout/configurations").glob("*.json"):
        path.write_text(path.read_text().replace('"bits": 4', '"bits": 9'))
    assert "run" not in {row.split()[1] for row in toy_built.run("plan").out.splitlines() if row.startswith("quantize")}


def test_an_edit_while_hydra_composes_is_not_remembered_as_what_was_read(toy_built: Toy) -> None:
    """The resolver's module edits the file that Hydra has just read, as somebody who saves it in that moment does."""
    toy_built.write(
        "edit.py",
        "import pipelines.compose as compose, sys\n"
        "from pipelines.cli import main\n"
        "from pathlib import Path\n"
        "was = compose.compose\n"
        "def late(*words):\n"
        "    found = was(*words)\n"
        "    path = Path('conf/quantize/int4.yaml')\n"
        "    path.write_text(path.read_text().replace('bits: 4', 'bits: 5'))\n"
        "    return found\n"
        "compose.compose = late\n"
        "sys.exit(main(['plan', 'quantize.group_size=16']))\n",
    )
    assert toy_built.call(sys.executable, "edit.py").status == 0
    assert "bits 4 -> 5" in toy_built.run("plan", "quantize.group_size=16").out


def test_a_default_that_is_made_counts(toy: Toy) -> None:
    field = "    sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2])\n"
    toy.edit("toystages/schema.py", "    group_size: int\n", f"    group_size: int\n{field}")
    toy.edit("toystages/schema.py", "from dataclasses", "import dataclasses\nfrom dataclasses")
    assert toy.build().status == 0
    toy.edit("toystages/schema.py", "[1, 2]", "[1, 2, 3]")
    assert "quantize.sizes [1, 2] -> [1, 2, 3]" in toy.run("plan").out


def test_an_editors_lock_is_no_configuration(toy_built: Toy) -> None:
    (toy_built.root / "conf/quantize/.#int4.yaml").symlink_to("someone@somewhere:1")
    assert toy_built.build().status == 0


def test_hydras_own_settings_are_not_remembered_however_they_are_written(toy: Toy) -> None:
    toy.write("elsewhere/quantize/int3.yaml", "bits: 3\ngroup_size: 32\n")
    text = (toy.root / "conf/config.yaml").read_text()
    toy.write("conf/config.yaml", text + f'"hydra":\n  searchpath: ["file://{toy.root}/elsewhere"]\n')
    toy.edit("conf/config.yaml", "{quantize: int4}", "{quantize: int3}")
    assert toy.build().status == 0
    toy.write("elsewhere/quantize/int3.yaml", "bits: 2\ngroup_size: 32\n")
    assert "bits 3 -> 2" in toy.run("plan").out
