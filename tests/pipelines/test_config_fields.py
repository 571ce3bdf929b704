"""A stage that may read some keys of its group: the others change nothing for it, and reading one is an error."""

import pytest

from tests.pipelines.toy import Toy, add_dvc

WHOLE, PART = "    config: validate\n    needs", "    config: validate\n    config_fields: [bound]\n    needs"
READS = "    value = 0.9 - config.noise\n"


@pytest.fixture
def limited(toy: Toy) -> Toy:
    """The toy, whose stage validate declares that it reads `bound` alone."""
    toy.edit("conf/pipeline/main.yaml", WHOLE, PART)
    toy.edit("toystages/validate.py", READS, "    value = 0.9\n")
    return toy


def test_a_key_that_is_not_declared_is_no_change(limited: Toy) -> None:
    first = limited.build()
    assert first.status == 0, first.err
    files = limited.files()
    again = limited.build("validate.noise=0.3")
    assert set(again.nodes.values()) == {"cached"}
    assert limited.files() == files
    other = limited.build("validate.bound=0.4")
    assert {name for name, status in other.nodes.items() if status == "built"} >= {"validate"}
    assert other.why["validate"] == "validate.bound 0.5 -> 0.4"


def test_without_it_every_key_is_one(toy: Toy) -> None:
    assert toy.build().status == 0
    again = toy.build("validate.noise=0.3")
    assert again.nodes["validate"] == "built" and again.why["validate"] == "validate.noise 0.0 -> 0.3"


def test_devices_that_differ_in_what_it_may_not_read_share_its_node(limited: Toy) -> None:
    limited.edit("conf/device/tablet.yaml", "overrides: {}", "overrides: {validate: {noise: 0.2}}")
    assert "validate" in limited.build().nodes
    limited.edit("conf/device/tablet.yaml", "noise: 0.2", "bound: 0.2")
    assert {"validate-phone", "validate-tablet"} <= set(limited.build().nodes)


def test_explain_tells_of_declared_keys_alone(limited: Toy) -> None:
    assert limited.build().status == 0
    said = limited.run("explain", "validate").out
    assert "validate.bound" in said and "validate.noise" not in said


@pytest.mark.parametrize("words", [[], ["executor.jobs=2"]])
def test_reading_another_key_is_an_error_that_names_the_declaration(words: list[str], limited: Toy) -> None:
    limited.edit("toystages/validate.py", "    value = 0.9\n", READS)
    result = limited.build(*words)
    assert result.status == 1
    assert "toystages.validate.validate reads config.noise" in result.err
    assert "config_fields: [..., noise]" in result.err and "Traceback" not in result.err


def test_what_it_maps_may_read_no_more(limited: Toy) -> None:
    limited.edit(
        "conf/pipeline/main.yaml", PART, PART.replace("    needs", "    calls: [toystages.part.part]\n    needs")
    )
    limited.edit(
        "toystages/validate.py", "    value = 0.9\n", "    ((_, value),) = work.map('toystages.part.part', [1])\n"
    )
    limited.write("toystages/part.py", "def part(item, config):\n    return 0.9 * item * (config.bound > 0)\n")
    done = limited.build()
    assert done.status == 0, done.err
    limited.edit("toystages/part.py", "config.bound", "config.noise")
    failed = limited.build()
    assert failed.status == 1 and "toystages.part.part reads config.noise" in failed.err


def test_a_group_without_a_schema_has_the_declared_keys_alone(limited: Toy) -> None:
    limited.edit("toystages/schema.py", ', "validate": Validate', "")
    limited.edit("toystages/validate.py", "    value = 0.9\n", "    assert set(config) == {'bound'}\n    value = 0.9\n")
    done = limited.build()
    assert done.status == 0, done.err


def test_dvc_knows_which_keys_it_depends_on(limited: Toy) -> None:
    add_dvc(limited)
    assert limited.build().status == 0
    text = (limited.root / "dvc.yaml").read_text()
    assert "validate.bound" in text and "validate.noise" not in text
    assert "\n      - validate\n" not in text
    assert limited.call("dvc", "status").out.strip() == "Data and pipelines are up to date."


@pytest.mark.parametrize(
    ("declared", "parts"),
    [
        ("config_fields: [bond]", ["validate", "config_fields", "'bond'", "did you mean 'bound'"]),
        ("config_fields: [group_size]", ["its group has no 'group_size'", "bound, noise"]),
        ("config_fields: bound", ["config_fields is 'bound'", "a list of names"]),
        ("config_fields: [1]", ["config_fields", "a list of names"]),
        ("config_fields: [bound]\n    sources: {noise: file}", ["sources", "'noise' is no key"]),
    ],
)
def test_mistakes_are_told_before_anything_runs(declared: str, parts: list[str], toy: Toy) -> None:
    toy.edit("conf/pipeline/main.yaml", WHOLE, PART.replace("config_fields: [bound]", declared))
    result = toy.run("plan")
    assert result.status == 2, result.err
    assert [part for part in parts if part not in result.err] == [], result.err


def test_a_stage_without_a_group_has_no_keys_to_declare(toy: Toy) -> None:
    toy.edit(
        "conf/pipeline/main.yaml",
        "    {run: toystages.convert.convert,",
        "    {run: toystages.convert.convert, config_fields: [bits],",
    )
    result = toy.run("plan")
    assert result.status == 2 and "config_fields" in result.err, result.err
