import json
from pathlib import Path

import pytest

from pipelines.sealed import read_sealed, seal, unseal, write_sealed

VALUES = [{}, {"b": 1, "a": {"z": [1, 2], "y": {"ü": None}}, "e": {}}, {"t": ' \n"{}'}]


@pytest.mark.parametrize("value", VALUES)
def test_what_is_sealed_comes_back(value: dict, tmp_path: Path) -> None:
    write_sealed(tmp_path / "deep" / "a", value)
    assert read_sealed(tmp_path / "deep" / "a") == value
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "a"]


@pytest.mark.parametrize("value", VALUES)
def test_no_bit_can_change_and_no_byte_can_go(value: dict) -> None:
    data = seal(value)
    for place in range(len(data)):
        assert unseal(data[:place]) is None
        for bit in range(8):
            assert unseal(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]) is None
    assert unseal(data + b"\n") is None


def test_others_read_it_as_json_and_line_by_line() -> None:
    data = seal(VALUES[1], sort=True)
    assert {name: each for name, each in json.loads(data).items() if name != "seal"} == VALUES[1]
    assert data == seal({name: VALUES[1][name] for name in reversed(VALUES[1])}, sort=True)
    assert data.decode().splitlines()[1:4] == [' "a": {', '  "y": {"\\u00fc": null},', '  "z": [1, 2]},']


def test_what_is_missing_or_not_sealed_is_nothing(tmp_path: Path) -> None:
    assert read_sealed(tmp_path / "a") is None
    (tmp_path / "a").write_text('{"a": 1}')
    assert read_sealed(tmp_path / "a") is None
    assert read_sealed(tmp_path) is None
