"""The bundles of a playground: looked at before anything is written, then copied as their manifests say."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from stages.release.bundles.folder import Folder, opened_folder
from stages.release.layout import sidecars
from stages.release.manifest import NAME, Manifest

PROVIDERS = ("wasm", "webgpu")  # execution providers of a browser
BUILD = "build one for the web: tapeout build 'device=[web-wasm]'"


@dataclass(frozen=True)
class Shown:
    """A bundle that the page offers. place: its folder in the site, such as bundles/web-wasm; label: what sets it apart
    from the others, such as int4."""

    folder: Folder
    place: str
    label: str

    def entry(self) -> dict[str, Any]:
        """What the page is told of it; `digest`, the manifest's sha256, is what it trusts the bundle by."""
        manifest = self.folder.manifest
        return {
            "url": f"{self.place}/",
            "label": self.label,
            "name": manifest.name,
            "version": manifest.version,
            "device": manifest.device,
            "title": str(manifest.value["device"].get("title") or manifest.device),
            "digest": manifest.digest,
            "size": manifest.size,
        }

    def copy(self, site: Path) -> None:
        """Write the bundle into the site, each file hashed as it is read, and what lies beside it.

        Raises VerificationError where a file is not as the manifest says; OSError.
        """
        out = site / self.place
        out.mkdir(parents=True)
        for file in self.folder.manifest.files:
            (out / file.path).parent.mkdir(parents=True, exist_ok=True)
            with open(out / file.path, "wb") as copied:
                for chunk in self.folder.chunks(file):
                    copied.write(chunk)
        (out / NAME).write_bytes(self.folder.manifest.data)
        beside = sidecars(self.folder.path)
        for path, suffix in ((beside.provenance, ".provenance.json"), (beside.signature, ".model.sig")):
            if path.is_file():
                shutil.copyfile(path, out.with_name(out.name + suffix))


def shown_bundles(paths: Sequence[Path]) -> list[Shown]:
    """Look at the bundles' folders. Raises ConfigError for what a browser cannot run, DamagedError where other files
    lie there than the manifest lists, VerificationError; no file is hashed yet."""
    opened = []
    for path in paths:
        if not path.is_dir():
            raise ConfigError(
                f"{path} is no folder", hint=f"a bundle is what a build leaves at artifacts/DEVICE; {BUILD}"
            )
        folder = opened_folder(path)
        check_for_web(folder.manifest, path)
        folder.check_listing()
        opened.append(folder)
    labels, places = labels_of(paths), dict[str, int]()
    shown = []
    for folder, label in zip(opened, labels, strict=True):
        device = folder.manifest.device
        places[device] = places.get(device, 0) + 1
        place = device if places[device] == 1 else f"{device}.{places[device]}"
        shown.append(Shown(folder, f"bundles/{place}", label))
    return shown


def check_for_web(manifest: Manifest, path: Path) -> None:
    """Raise ConfigError unless onnxruntime-web runs this bundle. It cannot leave an optional input out."""
    model, device = manifest.value["model"], manifest.value["device"]
    if manifest.runtime != "onnxruntime":
        raise ConfigError(f"{path} is for {manifest.runtime} ({manifest.device}), which no browser has", hint=BUILD)
    if "decoder" not in model["files"]:
        raise ConfigError(f"{path} holds {', '.join(model['files'])}, and no language model", hint=BUILD)
    providers = device.get("execution_providers") or []
    if not any(each in PROVIDERS for each in providers):
        listed = ", ".join(providers) or "no execution provider"
        raise ConfigError(f"{path} is for {manifest.device} ({listed}); a browser has wasm and webgpu", hint=BUILD)
    for name, function in model.get("functions", {}).items():
        for value, described in function["inputs"].items():
            if described.get("optional"):
                raise ConfigError(
                    f"{path}: the input {value} of its {name} is optional, and a browser's runtime takes all",
                    hint=f"it was not built in the web's form; {BUILD}",
                )


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Return what sets each path apart: its own name where all differ in it, else the nearest folder's above."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, min(map(len, parts), default=0) + 1):
        names = [each[-depth] for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} {number}" for number, path in enumerate(paths, 1)]
