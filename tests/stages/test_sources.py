"""Where checkpoints come from: folders, the hub's cache, MLflow and DVC, all without a network."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.errors import CheckpointError, ConfigError
from pipelines.workspace import Workspace
from stages.load import load
from stages.models.source_names import check_source
from stages.schema import ModelConfig
from tests.toy import toy_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config(path: str, revision: str | None = None) -> ModelConfig:
    return ModelConfig(path, revision, None, None, None, None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoint(tmp_path_factory.mktemp("good") / "model").path


def loaded(path: str, work: Path, revision: str | None = None) -> bytes:
    """The weights that load writes."""
    (work / "out").mkdir(parents=True)
    checkpoint = load(config(path, revision), Workspace(work / "out", work / "scratch"))
    return checkpoint.weights.read_bytes()


GOOD_NAMES = [
    ("models/fastvlm", None),
    ("hf://apple/FastVLM-0.5B", COMMIT),
    ("models:/fastvlm/3", None),
    ("models:/m-0123456789abcdef", None),
    ("runs:/0123456789abcdef0123456789abcdef/model", None),
]
BAD_NAMES = {
    "no commit": ("hf://apple/FastVLM-0.5B", None, ["model.revision is missing", "40 hexadecimal digits"]),
    "a branch": ("hf://apple/FastVLM-0.5B", "main", ["'main', which may move"]),
    "a short commit": ("hf://apple/FastVLM-0.5B", COMMIT[:12], ["which may move"]),
    "no owner": ("hf://FastVLM", COMMIT, ["expected hf://OWNER/NAME"]),
    "out of the cache": ("hf://apple/../x", COMMIT, ["expected hf://OWNER/NAME"]),
    "commit in the name": ("hf://apple/FastVLM@main", None, ["give the commit as model.revision"]),
    "an alias": ("models:/fastvlm@champion", None, ["names no version", "models:/fastvlm/1"]),
    "a stage": ("models:/fastvlm/Production", None, ["names no version"]),
    "latest": ("models:/fastvlm/latest", None, ["names no version"]),
    "no name": ("models:/", None, ["expected models:/NAME/VERSION"]),
    "no path": ("runs:/0123456789abcdef", None, ["expected runs:/RUN_ID/PATH"]),
    "other scheme": ("https://example.org/model", None, ["nothing is known of https:", "hf://OWNER/NAME"]),
    "revision of a folder": ("models/fastvlm", COMMIT, ["a revision is of hf://OWNER/NAME alone"]),
}


@pytest.mark.parametrize(("path", "revision"), GOOD_NAMES)
def test_what_is_pinned_is_taken(path: str, revision: str | None) -> None:
    check_source(config(path, revision))


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_could_move_or_is_malformed_is_refused_before_anything_runs(name: str) -> None:
    path, revision, parts = BAD_NAMES[name]
    with pytest.raises(ConfigError) as caught:
        check_source(config(path, revision))
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


def test_the_check_is_light() -> None:
    heavy = ("torch", "numpy", "huggingface_hub", "mlflow", "dvc", "yaml")
    code = f"import stages.models.source_names, sys; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def hub(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one snapshot, offline. Returns the snapshot's folder."""
    home = tmp_path / "hub" / "models--someone--small"
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in good.iterdir():
        data = file.read_bytes()
        large = file.suffix == ".safetensors"
        digest = hashlib.sha256(data) if large else hashlib.sha1(f"blob {len(data)}\0".encode() + data)
        (home / "blobs" / digest.hexdigest()).write_bytes(data)
        (snapshot / file.name).symlink_to(f"../../blobs/{digest.hexdigest()}")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return snapshot


def test_the_hubs_cache_serves_offline(hub: Path, good: Path, tmp_path: Path) -> None:
    assert loaded("hf://someone/small", tmp_path / "1", COMMIT) == loaded(str(good), tmp_path / "2")


def test_a_damaged_file_of_the_hub_is_found(hub: Path, tmp_path: Path) -> None:
    blob = (hub / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-2] ^= 1
    blob.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: its hash is"):
        loaded("hf://someone/small", tmp_path / "1", COMMIT)


def test_what_the_cache_lacks_is_said(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is not in the hub's cache and cannot be fetched \(offline mode is on\)"
    ):
        loaded("hf://someone/other", tmp_path / "1", COMMIT)
    (hub / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be fetched|model.safetensors is missing"):
        loaded("hf://someone/small", tmp_path / "2", COMMIT)


def test_a_registered_model_and_a_runs_artifacts(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    expected = loaded(str(good), tmp_path / "folder")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)
    try:
        experiment = mlflow.create_experiment("models", artifact_location=(tmp_path / "mlruns").as_uri())
        with mlflow.start_run(experiment_id=experiment) as run:
            mlflow.log_artifacts(str(good), "checkpoint")
        client = mlflow.MlflowClient()
        client.create_registered_model("small")
        client.create_model_version("small", f"{run.info.artifact_uri}/checkpoint", run.info.run_id)
        assert loaded(f"runs:/{run.info.run_id}/checkpoint", tmp_path / "1") == expected
        assert loaded("models:/small/1", tmp_path / "2") == expected
        with pytest.raises(CheckpointError, match="models:/small/2 cannot be fetched from MLflow"):
            loaded("models:/small/2", tmp_path / "3")
    finally:
        mlflow.set_tracking_uri(before)


def dvc(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})


@pytest.fixture(params=["added", "made"])
def tracked(good: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A repository in which DVC tracks models/small, by a .dvc file or as what a stage of dvc.yaml made; pushed to a
    remote; neither the folder nor the cache is here."""
    repository = tmp_path / "repository"
    (repository / "models").mkdir(parents=True)
    dvc("init", "--no-scm", "-q", cwd=repository)
    dvc("remote", "add", "-q", "-d", "store", str(tmp_path / "remote"), cwd=repository)
    if request.param == "added":
        shutil.copytree(good, repository / "models" / "small")
        dvc("add", "-q", "models/small", cwd=repository)
    else:
        command = f"cp -r {good} models/small"
        (repository / "dvc.yaml").write_text(f"stages: {{make: {{cmd: {command}, outs: [models/small]}}}}")
        dvc("repro", "-q", cwd=repository)
    dvc("push", "-q", cwd=repository)
    shutil.rmtree(repository / "models" / "small")
    shutil.rmtree(repository / ".dvc" / "cache")
    return repository / "models" / "small"


def test_a_tracked_folder_is_fetched_and_the_workspace_left_alone(tracked: Path, good: Path, tmp_path: Path) -> None:
    assert loaded(str(tracked), tmp_path / "1") == loaded(str(good), tmp_path / "2")
    assert not tracked.exists()
    for file in (tracked.parents[1] / ".dvc" / "cache").rglob("*"):
        if file.is_file() and file.stat().st_size > 100_000:
            file.chmod(0o644)
            data = bytearray(file.read_bytes())
            data[-2] ^= 1
            file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged in DVC's cache"):
        loaded(str(tracked), tmp_path / "3")
    shutil.rmtree(tracked.parents[1] / ".dvc" / "cache")
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises(CheckpointError, match="is neither here nor can DVC fetch it"):
        loaded(str(tracked), tmp_path / "4")
