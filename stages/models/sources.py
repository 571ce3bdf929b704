"""Where a checkpoint comes from: a folder, one that DVC tracks, the Hugging Face hub, or MLflow.

What comes from elsewhere is pinned (source_names.py), fetched as far as it is not here, and hashed before it is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import CheckpointError
from pipelines.workspace import Workspace
from stages.models.source_names import HUB, hub_name, scheme_of

CONFIG = "config.json"
# What a checkpoint may consist of: no pickles, no code.
PATTERNS = (
    CONFIG,
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "preprocessing.json",
)
_BLOCK = 1 << 22


def folder_of(path: str, revision: str | None, work: Workspace) -> Path:
    """The folder with the checkpoint that model.path names; what is fetched for this lies in a cache or work.scratch.

    Raises CheckpointError where it cannot be had, or is not what was pinned.
    """
    if scheme_of(path) == HUB:
        return _from_hub(path, str(revision))
    if scheme_of(path):
        return _from_mlflow(path, work.scratch / "mlflow")
    folder = Path(path)
    if not folder.exists() and (tracked := tracked_by_dvc(folder)):
        return _from_dvc(folder, *tracked, work.scratch / "dvc")
    return folder


def _from_hub(path: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RevisionResolutionError, XetDownloadError

    name = hub_name(path)
    wanted: dict[str, Any] = {"repo_id": name, "revision": revision, "allow_patterns": list(PATTERNS)}
    try:
        folder = Path(snapshot_download(**wanted, local_files_only=True))
        whole = _is_whole(folder)
    except (FileNotFoundError, RevisionResolutionError):
        whole = False
    if not whole:
        try:
            folder = Path(snapshot_download(**wanted))  # goes on where an earlier attempt stopped
        except (OSError, ValueError, HFValidationError, RevisionResolutionError, XetDownloadError) as cause:
            offline = " (offline mode is on)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "") else ""
            raise CheckpointError(
                f"{path} at {revision[:12]} is not in the hub's cache and cannot be fetched{offline}: "
                f"{str(cause).strip().splitlines()[0]}",
                hint="Check the name and the commit; log in with `hf auth login` if it is gated; or download it "
                "elsewhere and set model.path to the folder.",
            ) from cause
    for file in sorted(folder.iterdir()):
        _check_blob(file)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a cached snapshot has the configuration and all weights; an interrupted download lacks some."""
    index = folder / "model.safetensors.index.json"
    if not (folder / CONFIG).is_file():
        return False
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    places = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
    return all((folder / Path(str(file)).name).is_file() for file in places.values())


def _check_blob(file: Path) -> None:
    """Raise CheckpointError where a file of the hub's cache is not what its name there says.

    The cache keeps a file under its hash: sha256 for large ones, git's of a blob for others.
    """
    blob = file.resolve()
    expected = blob.name
    if blob.parent.name != "blobs" or len(expected) not in (40, 64):
        return
    digest = hashlib.sha256() if len(expected) == 64 else hashlib.sha1(f"blob {blob.stat().st_size}\0".encode())
    for block in _blocks(blob):
        digest.update(block)
    if digest.hexdigest() != expected:
        raise CheckpointError(
            f"{file} is damaged: its hash is {digest.hexdigest()[:16]}..., the hub says {expected[:16]}...",
            hint=f"Remove {blob} and build again; it will be downloaded anew.",
        )


def _from_mlflow(uri: str, target: Path) -> Path:
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    target.mkdir(parents=True, exist_ok=True)
    try:
        root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target)))
    except (MlflowException, OSError) as cause:
        raise CheckpointError(
            f"{uri} cannot be fetched from MLflow at {mlflow.get_tracking_uri()}: {str(cause).splitlines()[0]}",
            hint="Check the name and the version; MLFLOW_TRACKING_URI says where MLflow is.",
        ) from cause
    if (root / CONFIG).is_file():
        return root
    found = sorted(path.parent for path in root.rglob(CONFIG))
    if len(found) == 1:  # MLflow keeps a model's files below its own
        return found[0]
    raise CheckpointError(
        f"{uri} holds {len(found) or 'no'} folders with a {CONFIG}; expected one",
        hint="Log the checkpoint's folder as artifacts of the model, or give the path: runs:/RUN_ID/PATH.",
    )


def tracked_by_dvc(path: Path) -> tuple[str, str] | None:
    """(hash, target for `dvc fetch`) of a path that DVC tracks, by its own .dvc file or as an output in dvc.lock."""
    pointer = path.with_name(path.name + ".dvc")
    if pointer.is_file():
        outs = (_yaml(pointer) or {}).get("outs") or []
        if len(outs) == 1 and isinstance(outs[0], dict) and outs[0].get("md5"):
            return str(outs[0]["md5"]), str(pointer)
        raise CheckpointError(f"{pointer} does not say the hash of what it tracks", hint=f"Run `dvc add {path}` again.")
    for folder in path.absolute().parents:
        lock = folder / "dvc.lock"
        if not lock.is_file():
            continue
        within = path.absolute().relative_to(folder).as_posix()
        for name, stage in ((_yaml(lock) or {}).get("stages") or {}).items():
            for out in stage.get("outs") or []:
                if str(out.get("path", "")).rstrip("/") == within and out.get("md5"):
                    return str(out["md5"]), f"{folder / 'dvc.yaml'}:{name}"
    return None


def _from_dvc(path: Path, md5: str, target: str, folder: Path) -> Path:
    """The tracked folder, made in `folder` of links into DVC's cache, each file hashed.

    The workspace is left as it is: what lies there belongs to the user.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not md5.endswith(".dir"):
        raise CheckpointError(f"{target} tracks a file at {path}; expected a folder", hint="Track the whole folder.")
    try:
        with Repo(str(Path(target.partition(":")[0]).absolute().parent)) as repo:
            cache = repo.cache.local
            if not Path(cache.oid_to_path(md5)).is_file() or not _files_present(cache, md5):
                repo.fetch(targets=[target])
            files = _listing(cache, md5)
            return _checked_copy(cache, files, folder, path)
    except (DvcException, OSError, ValueError, KeyError) as cause:
        raise CheckpointError(
            f"{path}, which {target} tracks, is neither here nor can DVC fetch it: {cause}",
            hint=f"Run `dvc pull {target}` and see what it says.",
        ) from cause


def _listing(cache: Any, md5: str) -> dict[str, str]:
    """{relative path: md5} of a folder in DVC's cache."""
    entries = json.loads(Path(cache.oid_to_path(md5)).read_text(encoding="utf-8"))
    return {str(entry["relpath"]): str(entry["md5"]) for entry in entries}


def _files_present(cache: Any, md5: str) -> bool:
    return all(Path(cache.oid_to_path(each)).is_file() for each in _listing(cache, md5).values())


def _checked_copy(cache: Any, files: dict[str, str], folder: Path, path: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, md5 in sorted(files.items()):
        source, target = Path(cache.oid_to_path(md5)), folder / name
        if folder.resolve() not in target.resolve().parents:
            raise CheckpointError(f"{path}: DVC lists the file {name}, outside of it", hint="Track the folder anew.")
        digest = hashlib.md5(usedforsecurity=False)
        for block in _blocks(source):
            digest.update(block)
        if digest.hexdigest() != md5:
            raise CheckpointError(
                f"{path}/{name} is damaged in DVC's cache: its md5 is {digest.hexdigest()}, expected {md5}",
                hint=f"Remove {source}, then run `dvc fetch`.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copyfile(source, target)
    return folder


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as cause:
        raise CheckpointError(f"{path} is not valid YAML: {cause}", hint="Restore it from git.") from cause
