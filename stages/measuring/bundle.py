"""A bundle's folder, checked against its manifest before anything of it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from stages.artifacts import DeviceModel
from stages.release.bundles.contents import check_contents
from stages.release.bundles.folder import opened_folder
from stages.release.manifest import Manifest

HINT = "a bundle is what a build leaves at artifacts/DEVICE"


class Shipped(DeviceModel):
    """The device model in a bundle's folder. `digest`: the sha256 of its manifest, by which measurements are kept."""

    def __init__(self, path: Path, manifest: Manifest):
        super().__init__(path)
        self.manifest, self.digest = manifest.value, manifest.digest

    def description(self) -> dict[str, Any]:
        """The manifest's own description of the model."""
        return dict(self.manifest["model"])


def open_bundle(path: Path) -> Shipped:
    """Raises ConfigError for what is no bundle of a language model, VerificationError for one that is damaged.

    Who signed it does not matter here.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder", hint=HINT)
    bundle = opened_folder(path)
    check_contents(bundle)
    check_model(bundle.manifest, path)
    return Shipped(path, bundle.manifest)


def check_model(manifest: Manifest, path: Path) -> None:
    """Raise ConfigError unless the model generates text. That its parts are files of the bundle, its manifest says."""
    files = manifest.value["model"]["files"]
    if "decoder" not in files:
        raise ConfigError(
            f"{path} holds {', '.join(files)} for {manifest.runtime}, and no language model",
            hint="'tapeout measure' generates text; of a user's module, measure what it is used in",
        )
