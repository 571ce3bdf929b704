"""The conformance vectors of mobile/spec, held against the Python side; and the command that makes them."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from pipelines.cli import main
from pipelines.errors import ConfigError, StageError, TapeoutError
from pipelines.project import Project
from stages.conformance.changes import changed, refusal
from stages.conformance.command import vectors as command
from stages.conformance.vectors import made_with
from stages.conformance.versions import compared
from stages.data.image import preprocess, to_rgb
from stages.data.prompt import PromptFormat
from stages.data.source import TASKS
from stages.release.client.self_test import described
from stages.release.history.rollout import bucket
from stages.release.manifest import read, write_manifest
from stages.release.signing.keys import load_public_key
from stages.runtimes.generate import generate
from stages.runtimes.ort import OnnxSession
from tests.stages.arithmetic import over_white, tensor
from tests.stages.release.bundles import make_bundle

ROOT = Path(__file__).parent.parent.parent
VECTORS = ROOT / "mobile/spec/vectors"
SAID: dict[str, Any] = json.loads((VECTORS / "vectors.json").read_text(encoding="utf-8"))
BUNDLE = VECTORS / SAID["bundle"]["path"]
KEYS = [load_public_key(VECTORS / SAID["bundle"]["key"])]
IMAGES = [case for case in SAID["images"] if "error" not in case]


class Asked:
    """The bundle, opened once: image files are encoded once each."""

    def __init__(self) -> None:
        self.session = OnnxSession(described(BUNDLE, read(BUNDLE).value["model"]))
        image = int(self.session.description["image_token_id"]), int(self.session.description["image_tokens"])
        self.prompts = PromptFormat.open(BUNDLE, *image)
        self.settings = json.loads((BUNDLE / "preprocessing.json").read_text(encoding="utf-8"))
        self.seen: dict[str, Any] = {}

    def ids(self, image: str, question: str, count: int | None = None) -> list[int]:
        if image not in self.seen:
            self.seen[image] = self.session.encode(preprocess(VECTORS / image, self.settings))
        prompt, end = self.prompts.encode(question), self.prompts.end_id
        most = count or self.prompts.max_new_tokens
        return generate(self.session, prompt, self.seen[image], end_id=end, max_new_tokens=most)


@pytest.fixture(scope="module")
def asked() -> Asked:
    return Asked()


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def pixels_of(case: dict[str, Any]) -> np.ndarray:
    """What a case's tensor is made of: of a lossy file the pixels that lie beside it."""
    return np.asarray(to_rgb(VECTORS / case["pixels"].get("file", case["file"])))


def test_images_become_these_tensors() -> None:
    wrong = []
    for case in IMAGES:
        pixels = np.asarray(to_rgb(VECTORS / case["file"]))
        assert pixels.shape == (case["pixels"]["height"], case["pixels"]["width"], 3), case["file"]
        known = pixels_of(case)
        assert sha256(known) == case["pixels"]["sha256"], case["file"]
        assert np.abs(pixels.astype(int) - known).max() <= case["tolerance"], case["file"]
        found = preprocess(known, case["settings"])
        assert list(found.shape) == case["tensor"]["shape"]
        if sha256(found.astype("<f4")) != case["tensor"]["sha256"]:
            wrong.append((case["file"], case["settings"]))
    assert not wrong


def test_the_arithmetic_of_the_specification_gives_the_same_tensors() -> None:
    wrong = [
        (case["file"], case["settings"])
        for case in IMAGES
        if sha256(tensor(pixels_of(case), case["settings"]).astype("<f4")) != case["tensor"]["sha256"]
    ]
    assert not wrong


def test_the_arithmetic_of_the_specification_lays_over_white() -> None:
    colour, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    found = to_rgb(Image.fromarray(np.stack([colour, colour, colour, alpha], axis=-1)))
    expected = [[over_white(c, a) for c in range(256)] for a in range(256)]
    assert (np.asarray(found)[:, :, 0] == expected).all()


def test_what_is_no_image_is_refused() -> None:
    refused = [case for case in SAID["images"] if "error" in case]
    assert len(refused) >= 4 and {case["error"] for case in refused} == {"image"}
    for case in refused:
        with pytest.raises(StageError, match="cannot be read as an image"):
            to_rgb(VECTORS / case["file"])


@pytest.mark.parametrize("case", SAID["tokenizers"], ids=lambda case: case["file"])
def test_texts_become_these_ids_and_ids_these_texts(case: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_file(str(VECTORS / case["file"]))
    assert len(case["texts"]) >= 60
    for each in case["texts"]:
        assert tokenizer.encode(each["text"], add_special_tokens=False).ids == each["ids"], each["text"]
        assert tokenizer.decode(each["ids"], skip_special_tokens=True) == each["decoded"], each["text"]


def test_streams_say_these_texts() -> None:
    tokenizers = {case["file"]: Tokenizer.from_file(str(VECTORS / case["file"])) for case in SAID["streams"]}
    for case in SAID["streams"]:
        found = tokenizers[case["file"]].decode(case["ids"], skip_special_tokens=True).strip()
        assert found == case["text"], case["ids"]


def test_questions_become_these_prompts(asked: Asked) -> None:
    for case in SAID["prompts"]:
        if "error" in case:
            with pytest.raises(StageError, match="holds the image token"):
                asked.prompts.encode(case["question"])
        else:
            assert asked.prompts.encode(case["question"]) == case["ids"], case["question"]
    assert sum("error" in case for case in SAID["prompts"]) >= 3


def test_questions_get_these_answers(asked: Asked) -> None:
    assert len(SAID["answers"]) >= 48 and {case.get("task") for case in SAID["answers"]} >= set(TASKS)
    for case in [*SAID["answers"], *SAID["limits"]]:
        ids = asked.ids(case["image"], case["question"], case.get("max_tokens"))
        assert (ids, asked.prompts.decode(ids)) == (case["ids"], case["text"]), case["question"]
    assert {case["stop"] for case in SAID["limits"]} >= {"length", "context"}


def test_questions_without_room_in_the_context_are_refused(asked: Asked) -> None:
    for case in SAID["refused"]:
        with pytest.raises(StageError, match="does not fit the context"):
            asked.ids(case["image"], case["question"])


def test_tampered_bundles_are_refused_for_this_reason(tmp_path: Path) -> None:
    assert len(SAID["tampered"]) >= 30
    for number, case in enumerate([*SAID["tampered"], *SAID["accepted"]]):
        bundle = changed(VECTORS, case["changes"], tmp_path / str(number))
        assert refusal(bundle, KEYS) == case.get("error"), case["name"]


def test_every_file_of_the_bundle_is_tampered_with() -> None:
    flipped = {each["file"] for case in SAID["tampered"] for each in case["changes"] if each["op"] == "flip"}
    listed = {f"bundle/{file.path}" for file in read(BUNDLE).files}
    assert flipped == {*listed, "bundle/manifest.json", "bundle.provenance.json", "bundle.model.sig"}


def test_names_of_cases_stand_once_and_codes_are_those_of_the_sdk() -> None:
    names = [case["name"] for case in SAID["tampered"]]
    assert len(names) == len(set(names))
    text = (ROOT / "mobile/web/src/errors.ts").read_text(encoding="utf-8")
    codes = set(re.findall(r'^  "(\w+)",', text, re.MULTILINE))
    used = {
        case["error"] for name in ("tampered", "images", "prompts", "refused") for case in SAID[name] if "error" in case
    }
    assert used <= codes and used == {"integrity", "signature", "manifest", "image", "prompt"}


def test_updates_go_forward_alone(tmp_path: Path) -> None:
    for number, case in enumerate(SAID["updates"]):
        first, then = (changed(VECTORS, case[step], tmp_path / f"{number}-{step}") for step in ("first", "then"))
        assert refusal(first, KEYS) is None and refusal(then, KEYS) is None, case["name"]
        older = compared(read(then).version, read(first).version) < 0
        assert case["error"] == ("rollback" if older else None), case["name"]
    assert {case["error"] for case in SAID["updates"]} == {"rollback", None}


def test_versions_are_in_this_order() -> None:
    ascending = SAID["versions"]["ascending"]
    for place, version in enumerate(ascending):
        assert [compared(version, other) for other in ascending] == [1] * place + [0] + [-1] * (
            len(ascending) - place - 1
        )
    assert all(compared(one, other) == 0 for one, other in SAID["versions"]["equal"])


def test_installations_are_in_these_buckets() -> None:
    assert all(bucket(case["installation"], case["salt"]) == case["bucket"] for case in SAID["rollout"])
    assert len(SAID["rollout"]) >= 30


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.skipif(made_with() != SAID["made_with"], reason=f"made with {SAID['made_with']}")
def test_made_again_the_vectors_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([str(BUNDLE), "--out", str(tmp_path / "vectors"), "--json"], Project(tmp_path)) == 0
    told = json.loads(capsys.readouterr().out)
    found, expected = files_of(tmp_path / "vectors"), files_of(VECTORS)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    assert told["bundle"] == SAID["bundle"]["digest"] and told["cases"]["tampered"] == len(SAID["tampered"])
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]


def test_the_specification_names_every_code_event_metric_and_kind_of_vector() -> None:
    text = (ROOT / "mobile/spec/README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    errors = (ROOT / "mobile/web/src/errors.ts").read_text(encoding="utf-8")
    events = (ROOT / "mobile/web/src/events.ts").read_text(encoding="utf-8")
    codes = re.findall(r'^  "(\w+)",', errors, re.MULTILINE)
    kinds = re.findall(r'type: "(\w+)"', events)
    metrics = re.findall(
        r"^  (\w+)\??:", "".join(re.findall(r"Metrics \{.*?^\}", events, re.DOTALL | re.MULTILINE)), re.MULTILINE
    )
    assert len(codes) > 10 and len(kinds) > 5 and len(metrics) > 10
    for name in (*codes, *kinds, *metrics, *(name for name in SAID if name != "version")):
        assert f"`{name}`" in text, name


def test_they_are_small() -> None:
    sizes = {name: sum(map(len, files_of(VECTORS / name).values())) for name in ("images", "answers", "tampered")}
    assert sizes["images"] < 300_000 and sum(sizes.values()) < 1_500_000


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that looks as if vectors could be made from it."""
    make_bundle(tmp_path / "bundle", "web-wasm", tokenizer="tokenizer.json")
    return tmp_path / "bundle"


def wrong_uses(bundle: Path, folder: Path) -> Iterator[tuple[list[str], str]]:
    """Yield words for the command, and what it says."""
    yield [], "required: BUNDLE"
    yield [str(bundle), "--ot", "x"], "did you mean '--out'"
    yield [str(folder / "nothing")], "manifest.json cannot be read"
    (folder / "bundle.tar").write_bytes(b"")
    yield [str(folder / "bundle.tar")], "is a file"
    yield [str(folder)], "manifest.json cannot be read"
    yield [str(bundle), "--out", str(bundle / "vectors")], "lies in the bundle"
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("mine")
    yield [str(bundle), "--out", str(folder / "other")], "holds other things than vectors, such as 'notes.txt'"
    yield [str(bundle), "--out", str(folder / "bundle.tar")], "is no folder for vectors"
    yield [str(bundle), "--out", str(folder / "bundle.tar" / "vectors")], "cannot be written"
    make_bundle(folder / "phone", "iphone-15-pro", runtime="coreml", tokenizer="tokenizer.json")
    yield [str(folder / "phone")], "a bundle for Core ML"
    make_bundle(folder / "module")
    yield [str(folder / "module")], "without an encoder, a decoder or a tokenizer"


def test_wrong_use_is_told_and_changes_nothing(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in wrong_uses(bundle, tmp_path):
        before = files_of(tmp_path)
        assert main(["--project", str(ROOT), "vectors", *words]) == ConfigError.exit_status, words
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error, (words, error)
        assert files_of(tmp_path) == before, words


def test_a_damaged_bundle_gives_no_vectors(bundle: Path, tmp_path: Path) -> None:
    (bundle / "MODEL_CARD.md").write_bytes(b"# Another\n")
    with pytest.raises(TapeoutError, match="its sha256 is"):
        command([str(bundle), "--out", str(tmp_path / "vectors")], Project(tmp_path))
    assert not (tmp_path / "vectors").exists()


def test_vectors_that_cannot_be_made_leave_the_old_ones(tmp_path: Path) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "vectors"
    shutil.copytree(BUNDLE, bundle)
    value = read(bundle).value
    (bundle / "encoder.onnx").write_bytes(b"no graph")
    write_manifest(bundle, {name: value[name] for name in value if name not in ("files", "schema", "manifest_version")})
    out.mkdir()
    (out / "vectors.json").write_text(json.dumps({"version": 1, "bundle": {}, "tampered": []}))
    before = files_of(out)
    with pytest.raises(StageError, match="ONNX Runtime cannot load"):
        command([str(bundle), "--out", str(out)], Project(tmp_path))
    assert files_of(out) == before and sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "vectors"]
