"""The bundle: all that a device needs in one folder, and a manifest that says what each file is."""

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from pipelines.workspace import Workspace
from stages.artifacts import Bundle, DeviceModel, QuantizedModel, Validation
from stages.devices.risks import risks_of
from stages.quantizers.choices import weight_format
from stages.schema import DeviceProfile, PackageConfig

MANIFEST_VERSION = 1
_FINDINGS = ("risks", "precision")  # of the lowering: what may go wrong on the chip, what is not computed in float16


def package(
    device_model: DeviceModel,
    validation: Validation,
    model: QuantizedModel,
    config: PackageConfig,
    device: DeviceProfile,
    work: Workspace,
) -> Bundle:
    """The device model's files, and manifest.json: files with sizes and sha256, formats, device, metrics, how to
    prepare an image and a prompt, what may go wrong on the chip. It holds no time, no path and nobody's name."""
    shutil.copytree(device_model.path, work.out, dirs_exist_ok=True)
    description = device_model.description()
    bundle = Bundle(work.out)
    bundle.write_json(
        "manifest.json",
        {
            "manifest_version": MANIFEST_VERSION,
            "name": config.name,
            "version": config.version,
            "device": {
                "name": device.name,
                "title": device.title,
                "chip": device.chip,
                "minimum_os": device.minimum_os,
                "compute_units": device.compute_units,
                "execution_providers": device.execution_providers,
            },
            "runtime": description["runtime"],
            "model": {key: value for key, value in description.items() if key not in _FINDINGS},
            **_findings(description, model, device),
            **_preprocessing(device_model),
            "weights": _summary_of_formats(model),
            "validation": _validation(validation),
            "files": _files(work.out),
        },
    )
    return bundle


def _findings(description: dict[str, Any], model: QuantizedModel, device: DeviceProfile) -> dict[str, Any]:
    """What may go wrong on the device, and what is not computed in float16."""
    held = {"precision": description["precision"]} if "precision" in description else {}
    return {**held, "risks": risks_of(description, model, device)}


def _preprocessing(device_model: DeviceModel) -> dict[str, Any]:
    """How to prepare an image and a prompt; nothing for a user's module."""
    if not (device_model.path / "preprocessing.json").is_file():
        return {}
    return {"tokenizer": "tokenizer.json", "preprocessing": device_model.read_json("preprocessing.json")}


def _files(folder: Path) -> list[dict[str, Any]]:
    """Every file of the folder: path (with forward slashes), size in bytes, sha256."""
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _summary_of_formats(model: QuantizedModel) -> list[dict[str, Any]]:
    """How many tensors there are of each format, and their bytes."""
    tensors, sizes = Counter[str](), Counter[str]()
    store = model.store()
    for name in store.names():
        tensor = store.format(name)
        label = weight_format(tensor.format, tensor.bits)
        tensors[label] += 1
        sizes[label] += tensor.bytes
    return [{"format": label, "tensors": tensors[label], "bytes": sizes[label]} for label in sorted(tensors)]


def _validation(validation: Validation) -> dict[str, Any]:
    metrics = validation.metrics()
    return {
        key: metrics[key]
        for key in ("questions", "tasks", "overall", "parity", "fidelity", "predicted", "gates")
        if key in metrics
    }
