"""Our reading of our schemas beside jsonschema's: what the one takes, the other takes."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from stages.release import manifest
from stages.release.schema import first_wrong
from tests.stages.release.bundles import make_bundle
from tests.stages.release.test_attacks import change

SCHEMAS = sorted(Path(manifest.__file__).parent.glob("*.schema.json"))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_every_keyword_of_our_schemas_is_known(path: Path) -> None:
    schema = json.loads(path.read_text())
    assert first_wrong(None, schema) is not None


@pytest.mark.parametrize(("count", "seed"), [(400, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)])
def test_mutated_manifests_beside_jsonschema(count: int, seed: int, tmp_path: Path) -> None:
    from jsonschema import Draft202012Validator

    schema = json.loads(manifest.schema_path().read_text())
    theirs, draw, taken = Draft202012Validator(schema), random.Random(seed), 0
    good = make_bundle(tmp_path, self_test=[{"image": None, "question": "What?", "answer": "It."}]).value
    for _ in range(count):
        value = copy.deepcopy(good)
        for _ in range(draw.choice([1, 1, 2])):
            change(value, draw)
        wrong = first_wrong(value, schema)
        assert (wrong is None) == theirs.is_valid(value), (wrong, value)
        taken += wrong is None
        if wrong is not None:
            at: Any = value
            for part in wrong[0]:
                at = at[part]  # the place that it names is there
    assert 0.02 < taken / count < 0.9


CASES: list[tuple[Any, dict[str, Any], bool]] = [
    (1.0, {"type": "integer"}, True),
    (1.5, {"type": "integer"}, False),
    (True, {"type": "integer"}, False),
    (True, {"const": 1}, False),
    (1, {"enum": [True, "x"]}, False),
    (2**70, {"maximum": 5}, False),
    ("é" * 3, {"maxLength": 3}, True),
    ("a\n", {"pattern": "^a$"}, True),
    ({}, {"minProperties": 1}, False),
    ([1], {"minProperties": 5}, True),
    ({"a": 1}, {"additionalProperties": {"type": "string"}}, False),
    ({"a": 1}, {"properties": {"a": False}}, False),
    (5, {"anyOf": [{"type": "null"}, {"minimum": 5}]}, True),
    (4, {"anyOf": [{"type": "null"}, {"minimum": 5}]}, False),
    (4, {"not": {"minimum": 5}}, True),
    ([[1, "x"]], {"items": {"$ref": "#/$defs/row"}, "$defs": {"row": {"items": {"type": "number"}}}}, False),
]


@pytest.mark.parametrize(("value", "schema", "right"), CASES)
def test_keywords(value: Any, schema: dict[str, Any], right: bool) -> None:
    from jsonschema import Draft202012Validator

    assert Draft202012Validator(schema).is_valid(value) is right
    assert (first_wrong(value, schema) is None) is right


def test_a_keyword_that_is_not_known_is_no_silent_yes() -> None:
    with pytest.raises(NotImplementedError, match="uniqueItems"):
        first_wrong([1, 1], {"uniqueItems": True})
