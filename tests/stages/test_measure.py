"""`tapeout measure`: real bundles of the toy model, in processes of their own."""

import json
import mmap
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import ConfigError, StageError, TapeoutError, VerificationError
from pipelines.project import Project
from pipelines.sealed import read_sealed
from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, Evaluation, Validation
from stages.convert import convert
from stages.measuring import memory, process
from stages.measuring.bundle import open_bundle
from stages.measuring.command import kept_at, measure
from stages.package import package
from tests.conf import group
from tests.rounded import rounded
from tests.toy import toy_checkpoint

DEVICES = ("pixel-8", "iphone-15-pro")
LEAK = 1 << 20  # bytes an answer: far more than what else a process takes meanwhile
QUICK = ["--generations", "60", "--tokens", "4", "--images", "2"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles of both devices, as package leaves them."""
    path = tmp_path_factory.mktemp("bundles")
    model = rounded(toy_checkpoint(path / "checkpoint"), path / "quantized")
    config = group("convert", "default", context=192, prefill_chunk=64, overflow="fail")
    validation = Validation(path / "validation")
    validation.path.mkdir()
    validation.write_json("metrics.json", {"tasks": {}, "gates": []})
    evaluation = Evaluation(path / "validation")
    for name in DEVICES:
        device = group("device", name)
        places = [path / f"{kind}-{name}" for kind in ("device", "scratch")]
        places[0].mkdir()
        (path / name).mkdir()
        made = convert(model, config, device, Workspace(*places))
        bundle = Workspace(path / name, places[1])
        package(made, evaluation, validation, model, group("package", "default"), device, bundle)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize("device", DEVICES)
def test_a_bundle_is_measured(device: str, bundles: Path, project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure([str(bundles / device), *QUICK, "--json"], project) == 0
    (found,) = json.loads(capsys.readouterr().out)["measured"]
    assert found["device"] == device and found["settings"]["generations"] == 60
    latency = found["latency_ms"]
    assert list(latency) == ["encode", "prefill", "first_token", "token"]
    assert latency["encode"]["n"] == 48 and latency["token"]["n"] == 48 * 3  # one in five is not timed
    for part in latency.values():
        assert 0 < part["p50"] <= part["p90"] <= part["p95"] <= part["p99"]
    assert latency["first_token"]["mean"] == pytest.approx(latency["encode"]["mean"] + latency["prefill"]["mean"], 0.01)
    assert found["tokens_per_s"] == pytest.approx(1000 / latency["token"]["mean"], 0.01)
    assert found["load_s"] > 0 and 0 < found["core_share"] < 1.1
    sizes = found["memory_mib"]
    assert 20 < sizes["before"] < sizes["loaded"] <= sizes["peak"]
    assert found["leak"]["passed"] and found["leak"]["growth"] <= 0.01 and len(found["leak"]["allocated_mib"]) == 12
    assert ("neither Core ML nor a phone" in found["note"]) == (device == "iphone-15-pro")
    kept = read_sealed(kept_at(project, open_bundle(bundles / device).digest))
    assert kept == found


def test_what_it_says_on_a_terminal(bundles: Path, project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--generations", "3", "--tokens", "2", "--images", "1"]
    assert measure([*(str(bundles / each) for each in DEVICES), *few], project) == 0
    out = capsys.readouterr().out
    assert "pixel-8: measured on this machine's processor, not on the device" in out
    assert "iphone-15-pro: measures the reference executor on this machine, neither Core ML nor a phone" in out
    assert "growth             not known: fewer than 50 generations" in out
    assert "on cores" in out or sys.platform != "linux"


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda path: (path / "manifest.json").unlink(), ConfigError, "manifest.json cannot be read: No such file"),
        (lambda path: (path / "manifest.json").write_text("{}"), VerificationError, "is a required property"),
        (
            lambda path: (path / "tokenizer.json").write_text("{}"),
            VerificationError,
            "it has 2 bytes, and",
        ),
        (lambda path: flip(path / "tokenizer.json"), VerificationError, "tokenizer.json: its sha256 is"),
        (lambda path: (path / "decoder.onnx").unlink(), VerificationError, "decoder.onnx: missing"),
        (lambda path: shutil.rmtree(path), ConfigError, "is no folder"),
    ],
)
def test_what_is_no_whole_bundle(
    spoil: Any, error: type[TapeoutError], said: str, bundles: Path, tmp_path: Path, project: Project
) -> None:
    shutil.copytree(bundles / "pixel-8", tmp_path / "bundle")
    spoil(tmp_path / "bundle")
    with pytest.raises(error, match=said):
        measure([str(tmp_path / "bundle")], project)


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def test_a_users_module_is_no_language_model(bundles: Path, tmp_path: Path, project: Project) -> None:
    shutil.copytree(bundles / "pixel-8", tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    value = json.loads(path.read_text())
    value["model"]["files"] = {"main": "decoder.onnx"}
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="holds main for onnxruntime, and no language model"):
        measure([str(tmp_path / "bundle")], project)


@pytest.mark.parametrize("name", ["../evil.onnx", "/etc/passwd", "sub/../../evil.onnx", "not-listed.onnx", "", 5, None])
def test_only_files_that_the_manifest_lists_are_opened(
    name: Any, bundles: Path, tmp_path: Path, project: Project
) -> None:
    shutil.copytree(bundles / "pixel-8", tmp_path / "bundle")
    shutil.copyfile(bundles / "pixel-8/decoder.onnx", tmp_path / "evil.onnx")
    path = tmp_path / "bundle" / "manifest.json"
    value = json.loads(path.read_text())
    value["model"]["files"]["decoder"] = name
    path.write_text(json.dumps(value))
    with pytest.raises((ConfigError, VerificationError), match=r"model\.files\.decoder(:| is)") as found:
        open_bundle(tmp_path / "bundle")
    assert found.value.hint
    with pytest.raises((ConfigError, VerificationError), match=r"model\.files\.decoder(:| is)"):
        measure([str(tmp_path / "bundle")], project)


def test_a_part_may_be_a_folder_of_listed_files(bundles: Path, tmp_path: Path) -> None:
    files = open_bundle(bundles / "iphone-15-pro").description()["files"]
    assert all((bundles / "iphone-15-pro" / name).is_dir() for name in files.values())
    shutil.copytree(bundles / "iphone-15-pro", tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    value = json.loads(path.read_text())
    value["model"]["files"]["decoder"] = files["decoder"][:-1]  # the beginning of a name is no folder
    path.write_text(json.dumps(value))
    with pytest.raises(VerificationError, match="does not list among its files"):
        open_bundle(tmp_path / "bundle")


def test_a_link_is_no_file_of_a_bundle(bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "pixel-8", tmp_path / "bundle")
    (tmp_path / "bundle/decoder.onnx").unlink()
    (tmp_path / "bundle/decoder.onnx").symlink_to(bundles / "pixel-8/decoder.onnx")
    with pytest.raises(VerificationError, match=r"decoder\.onnx: a symbolic link; only plain files"):
        open_bundle(tmp_path / "bundle")


def test_files_that_the_runtime_cannot_load(bundles: Path, tmp_path: Path, project: Project) -> None:
    """Whole, as the manifest has it, and still nothing that runs."""
    import hashlib

    shutil.copytree(bundles / "pixel-8", tmp_path / "bundle")
    (tmp_path / "bundle/decoder.onnx").write_bytes(b"nothing")
    path = tmp_path / "bundle" / "manifest.json"
    value = json.loads(path.read_text())
    entry = next(each for each in value["files"] if each["path"] == "decoder.onnx")
    entry.update(size=7, sha256=hashlib.sha256(b"nothing").hexdigest())
    path.write_text(json.dumps(value))
    with pytest.raises(StageError, match=r"ONNX Runtime cannot load decoder\.onnx"):
        measure([str(tmp_path / "bundle"), "--generations", "2"], project)
    assert not (tmp_path / ".tapeout").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tokens", "500"], "the context of 192 holds"),
        (["--tokens", "1"], "--tokens 1: it takes 2 or more"),
        (["--threads", "5000"], "--threads 5000: there are"),
        (["--token", "5"], "unrecognized arguments: --token"),
    ],
)
def test_mistakes(words: list[str], said: str, bundles: Path, project: Project) -> None:
    with pytest.raises(ConfigError, match=said):
        measure([str(bundles / "pixel-8"), *words], project)


def test_growth_is_found_whether_it_comes_slowly_or_at_once() -> None:
    base, noise = 100 * 2**20, np.random.default_rng(0).integers(-40_000, 40_000, 40)
    flat = memory.growth([base + int(each) for each in noise], every=5)
    assert flat is not None and flat.passed and abs(flat.kib) < 1
    slow = memory.growth([base + place * 5 * 10_000 + int(each) for place, each in enumerate(noise)], every=5)
    assert slow is not None and not slow.passed and slow.kib == pytest.approx(10_000 / 1024, 0.05)
    once = memory.growth([base + (place > 30) * 3 * 2**20 for place in range(40)], every=5)
    assert once is not None and not once.passed
    lone = memory.growth([base + (place == 20) * 50 * 2**20 for place in range(40)], every=5)
    assert lone is not None and lone.passed  # a moment's page cache is no growth
    assert memory.growth([base] * 9, every=5) is None


def test_a_session_that_keeps_its_caches_is_caught(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.measuring.command import parse, write_inputs
    from stages.runtimes.ort import OnnxSession

    kept: list[Any] = []
    start = OnnxSession.start

    def leaking(self: OnnxSession) -> Any:
        block = mmap.mmap(-1, LEAK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # new pages, whatever the heap has free
        block.write(bytes([1]) * LEAK)
        kept.append(block)
        return start(self)

    bundle = open_bundle(bundles / "pixel-8")
    write_inputs(bundle, parse([str(bundle.path), "--images", "1"]), tmp_path / "inputs.npz")
    job = process.Job(str(bundle.path), 1, [], warm_up=2, generations=60, tokens=2)
    monkeypatch.setattr(OnnxSession, "start", leaking)
    leak = process.measured(job, tmp_path / "inputs.npz")["leak"]
    assert not leak["passed"] and leak["kib_per_generation"] == pytest.approx(LEAK / 1024, 0.1)


def test_latencies_by_part() -> None:
    times = np.array([[0.1, 0.2, 0.01, 0.03], [0.3, 0.2, 0.01, 0.03]])
    found = process.latencies(times, has_tower=True)
    assert found["first_token"] == {"n": 2, "mean": 400, "p50": 400, "p90": 480, "p95": 490, "p99": 498}
    assert found["token"]["n"] == 4 and found["token"]["p50"] == 20
    assert "encode" not in process.latencies(times, has_tower=False)


def test_the_description_is_the_manifests(bundles: Path) -> None:
    shipped = open_bundle(bundles / "pixel-8")
    described = DeviceModel(bundles / "pixel-8").description()
    assert shipped.description()["files"] == described["files"] and shipped.description()["context"] == 192
