"""A bundle's folder, checked against its manifest before anything of it runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, StoreError
from pipelines.verify import verify_bundle
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
    if "decoder" not in files:
        raise ConfigError(
            f"{path} holds {', '.join(files)} for {runtime}, and no language model",
            hint="'tapeout measure' generates text; of a user's module, measure what it is used in",
        )
    return Shipped(path, value, hashlib.sha256(data).hexdigest())
