"""A bundle whose model runs: the toy model for ONNX Runtime, with a question that it answers right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from stages.release.client.self_test import answered
from stages.release.manifest import Manifest, read
from stages.runtimes.opening import open_session
from tests.converted import converted
from tests.stages.release.bundles import make_bundle

IMAGE, QUESTION = "self_test/0.png", "what?"


def write_runnable(path: Path) -> Path:
    """Write the bundle to a folder in `path`; return the folder."""
    model, folder = converted(path).device_model, path / "bundle"
    shutil.copytree(model.path, folder)
    (folder / "self_test").mkdir()
    Image.effect_noise((40, 30), 90).convert("RGB").save(folder / IMAGE)
    manifest = asks(folder, "?")
    answer = answered(folder, manifest, open_session(model), manifest.value["self_test"][0])
    assert answer
    asks(folder, answer)
    return folder


def asks(folder: Path, *answers: str, version: str = "1.0.0", **files: bytes) -> Manifest:
    """Write the manifest of such a folder, with these answers to the question; files: others, by name."""
    kept = {f"{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    kept.pop("manifest.json", None)
    model = json.loads(kept["model.json"])
    questions = [{"image": IMAGE, "question": QUESTION, "answer": each} for each in answers]
    return make_bundle(folder, version=version, weights=0, files={**kept, **files}, model=model, self_test=questions)


def contents(folder: Path) -> dict[str, bytes]:
    """Return {path: bytes} of the files that the manifest lists."""
    return {file.path: (folder / file.path).read_bytes() for file in read(folder).files}
