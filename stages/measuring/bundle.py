"""A bundle's folder, checked against its manifest before anything of it runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, StoreError
from pipelines.verify import lies_inside, listed_in, verify_bundle
from stages.artifacts import DeviceModel

HINT = "a bundle is what a build leaves at artifacts/DEVICE"


class Shipped(DeviceModel):
    """The device model in a bundle's folder. `digest`: the sha256 of its manifest, by which measurements are kept."""

    def __init__(self, path: Path, manifest: dict[str, Any], digest: str):
        super().__init__(path)
        self.manifest, self.digest = manifest, digest

    def description(self) -> dict[str, Any]:
        """The manifest's own description of the model."""
        return dict(self.manifest["model"])


def open_bundle(path: Path) -> Shipped:
    """Raises ConfigError for what is no bundle of a language model, StoreError for one with damaged files."""
    manifest = path / "manifest.json"
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder", hint=HINT)
    try:
        data = manifest.read_bytes()
        value = json.loads(data)
        runtime, files, _ = value["model"]["runtime"], value["model"]["files"], value["device"]["name"]
    except FileNotFoundError as cause:
        raise ConfigError(f"{path} has no manifest.json", hint=HINT) from cause
    except (OSError, ValueError, TypeError, KeyError) as cause:
        raise ConfigError(f"{manifest} is no bundle's manifest: {type(cause).__name__}: {cause}", hint=HINT) from cause
    damaged = list(verify_bundle(path))
    if damaged:
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise StoreError(
            f"{damaged[0]}{more}", hint="these are not the files that were validated: build the bundle again"
        )
    check_parts(path, files)
    if "decoder" not in files:
        raise ConfigError(
            f"{path} holds {', '.join(files)} for {runtime}, and no language model",
            hint="'tapeout measure' generates text; of a user's module, measure what it is used in",
        )
    return Shipped(path, value, hashlib.sha256(data).hexdigest())


def check_parts(path: Path, files: Any) -> None:
    """Raise ConfigError unless each part of the model is a file that the manifest lists, or a folder of such files.

    They have just been hashed, and lie in the folder: what else the manifest names is not opened.
    """
    where = f"{path / 'manifest.json'}: model.files"
    if not isinstance(files, dict):
        raise ConfigError(f"{where} is {files!r}, and must name a file for each part of the model", hint=HINT)
    listed = listed_in(path)
    for part, name in files.items():
        if not isinstance(name, str) or not lies_inside(name):
            raise ConfigError(f"{where}.{part} is {name!r}, which is no path inside the bundle", hint=HINT)
        if name not in listed and not any(each.startswith(f"{name}/") for each in listed):
            raise ConfigError(
                f"{where}.{part} is '{name}', which the manifest does not list among its files",
                hint="only files whose sha256 is known are run: build the bundle again",
            )
