"""The manifest: what keeps to its schema, and what is refused, whatever it is."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError, VerificationError
from stages.release.manifest import MAXIMUM, WORD, lies_inside, parse, read, sha256_of
from tests.stages.release.bundles import make_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "pixel-8"
    make_bundle(path, files={"decoder.mlpackage/Data/weight.bin": b"12"})
    return path


@pytest.fixture(scope="module")
def value(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_bytes()))


def test_a_manifest_lists_every_file_but_itself(folder: Path, tmp_path: Path) -> None:
    manifest = read(folder)
    assert manifest.title == "demo 1.0.0 for pixel-8"
    assert manifest.digest == sha256_of(folder / "manifest.json")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {file.path for file in manifest.files} | {"manifest.json"} == found
    assert all(sha256_of(folder / file.path) == file.sha256 for file in manifest.files)
    other = make_bundle(tmp_path / "elsewhere", files={"decoder.mlpackage/Data/weight.bin": b"12"})
    assert other.data == manifest.data


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"manifest\.json cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("place", "new", "expected"),
    [
        (["manifest_version"], 1, "manifest_version"),
        (["name"], "a/b", "name"),
        (["version"], "1.0\n", "version"),
        (["version"], None, "version"),
        (["device", "name"], "..", "device.name"),
        (["runtime"], "tflite", "'tflite' is not one of"),
        (["surprise"], 1, "'surprise' was unexpected"),
        (["files"], [], "files"),
        (["files", 0, "size"], -1, "files.0.size"),
        (["files", 0, "size"], 1.5, "files.0.size"),
        (["files", 0, "size"], 1 << 41, "files.0.size"),
        (["files", 0, "sha256"], "ABC", "files.0.sha256"),
        (["files", 0, "mode"], 0o777, "'mode' was unexpected"),
        (["files", 0, "path"], "../evil", "no path inside"),
        (["files", 0, "path"], "/etc/passwd", "no path inside"),
        (["files", 0, "path"], "C:\\evil", "no path inside"),
        (["files", 0, "path"], "a//b", "no path inside"),
        (["files", 0, "path"], "a\x00b", "no path inside"),
        (["files", 0, "path"], "a\u202eb", "no path inside"),
        (["files", 0, "path"], "manifest.JSON", "same file"),
        (["files", 0, "path"], "ENCODER.onnx", "same file"),
        (["files", 0, "path"], "encoder.onnx", "same file"),
        (["files", 0, "path"], "decoder.onnx/x", "as a file and as a folder"),
        (["files", 0, "path"], "a/nul.txt", "no path inside"),
        (["files", 0, "path"], "Com1", "no path inside"),
        (["files", 0, "path"], "decoder.mlpac\u212aage/data/weight.bin", "same file"),  # the sign of Kelvin
        (["self_test"], [{"image": "../x", "question": 1, "answer": ""}], "self_test.0.question"),
        (["self_test"], [{"image": "../x", "question": "", "answer": ""}], "self_test.0.image is '../x', which is no"),
        (["self_test"], [{"image": "x.png", "question": "", "answer": ""}], "self_test.0.image is 'x.png', which it"),
        (["model", "files", "decoder"], "/etc/passwd", "model.files.decoder is '/etc/passwd', which is no path inside"),
        (["model", "files", "decoder"], "decoder.mlp", "model.files.decoder is 'decoder.mlp', which it does not list"),
        (["tokenizer"], "../tokenizer.json", "tokenizer is '../tokenizer.json', which is no path inside"),
        (["tokenizer"], "decoder.mlpackage", "which it does not list"),  # a folder is no text
        (["licence", "files"], ["LICENCE"], "licence.files.0 is 'LICENCE', which it does not list"),
        (["documents", "model_card"], "card.md", "documents.model_card is 'card.md', which it does not list"),
    ],
)
def test_what_is_no_manifest(place: list[Any], new: Any, expected: str, value: dict[str, Any]) -> None:
    changed = copy.deepcopy(value)
    inner: Any = changed
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = new
    with pytest.raises(VerificationError) as caught:
        parse(json.dumps(changed).encode(), "here")
    assert expected in caught.value.message and caught.value.message.startswith("here: ")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{" * 100_000,
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b"\xff\xfe{}",
        b'{"a": ' + b"9" * 10_000 + b"}",
        b" " * (MAXIMUM + 1),
    ],
)
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(VerificationError):
        parse(data, "here")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("word", ["a", "1.0+b_-", "a" * 128, "a" * 129, "", ".a", "a/b", "a\n", "é"])
def test_a_word_is_what_the_schema_says(word: str, value: dict[str, Any]) -> None:
    changed = json.dumps({**value, "name": word}).encode()
    if WORD.fullmatch(word):
        assert parse(changed, "here").name == word
    else:
        with pytest.raises(VerificationError, match="name"):
            parse(changed, "here")


def test_a_part_of_the_model_may_be_a_folder(value: dict[str, Any]) -> None:
    changed = copy.deepcopy(value)
    changed["model"]["files"]["decoder"] = "decoder.mlpackage"
    assert parse(json.dumps(changed).encode(), "here").value["model"]["files"]["decoder"] == "decoder.mlpackage"


def test_two_spellings_of_an_accent_are_one_file(value: dict[str, Any]) -> None:
    changed = copy.deepcopy(value)
    changed["files"][0]["path"], changed["files"][1]["path"] = "\u00c9", "e\u0301"
    with pytest.raises(VerificationError, match="same file"):
        parse(json.dumps(changed).encode(), "here")


LARGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "names": lambda value: {**value, **{f"{number:06}": 1 for number in range(300_000)}},
    "weights": lambda value: {**value, "weights": [{"format": "", "tensors": 0, "bytes": 0}] * 100_000},
    "parts": lambda value: {**value, "model": {"runtime": "coreml", "files": {str(n): "a" for n in range(200_000)}}},
    "licences": lambda value: {**value, "licence": {"weights": None, "files": ["a"] * 500_000}},
    "units": lambda value: {**value, "device": {"name": "x", "compute_units": [""] * 1_000_000}},
    "mistakes": lambda value: {**value, "weights": [1] * 1_500_000},
}


@pytest.mark.parametrize("case", LARGE)
def test_a_large_manifest_is_judged_soon(case: str, value: dict[str, Any]) -> None:
    """Anybody's, and before any signature is looked at."""
    data = json.dumps(LARGE[case](value), separators=(",", ":")).encode()
    assert len(data) <= MAXIMUM
    begun = time.process_time()
    with pytest.raises(VerificationError):
        parse(data, "here")
    assert time.process_time() - begun < 3


def test_a_name_that_stands_twice_is_found_in_one_pass() -> None:
    data = "{" + ",".join(f'"{number:06}":1' for number in range(100_000)) + ',"099999":1}'
    begun = time.process_time()
    with pytest.raises(VerificationError, match="'099999' stands twice"):
        parse(data.encode(), "here")
    assert time.process_time() - begun < 3


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_changes_are_a_manifest_or_refused(data: st.DataObject, value: dict[str, Any]) -> None:
    """What is let through keeps to the schema: every path stays inside, every size is one."""
    changed = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        inner: Any = changed
        while True:
            if not inner:
                break
            key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            if isinstance(inner[key], dict | list) and data.draw(st.booleans()):
                inner = inner[key]
                continue
            inner[key] = data.draw(ANYTHING)
            break
    try:
        manifest = parse(json.dumps(changed).encode(), "here")
    except VerificationError:
        return
    assert all(lies_inside(file.path) and isinstance(file.size, int) and file.size >= 0 for file in manifest.files)
    assert manifest.name and manifest.version and manifest.device and manifest.runtime in ("coreml", "onnxruntime")


@settings(max_examples=300, deadline=None)
@given(name=st.text(max_size=12))
def test_a_plain_path_leads_nowhere_else(name: str) -> None:
    if lies_inside(name):
        assert Path("/base", name).resolve().is_relative_to("/base") and Path("/base", name) != Path("/base")
