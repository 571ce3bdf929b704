"""The bundle: all that a device needs in one folder, what it is made of, and a manifest that says what each file is."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from pipelines.workspace import Workspace
from stages.artifacts import Bundle, DeviceModel, Evaluation, QuantizedModel, Validation
from stages.devices.risks import risks_of
from stages.quantizers.choices import weight_format
from stages.release.bundles.bill import BILL, bill_of_materials
from stages.release.bundles.card import CARD, model_card
from stages.release.bundles.libraries import tools
from stages.release.bundles.licences import LICENCES, WEIGHTS, licences
from stages.release.manifest import files_of, write_manifest
from stages.schema import DeviceProfile, PackageConfig

_METHODS = {  # how codes came to be, by what became codes
    "checkpoint": "quantized from the checkpoint's weights",
    "trained": "trained together with their codes",
    "equalized": "quantized after scales were moved between layers",
}
_FINDINGS = ("risks", "precision")  # of the lowering: what may go wrong on the chip, what is not computed in float16


def package(
    device_model: DeviceModel,
    evaluation: Evaluation,
    validation: Validation,
    model: QuantizedModel,
    config: PackageConfig,
    device: DeviceProfile,
    work: Workspace,
) -> Bundle:
    """The device model's files; its card, licences and bill of materials; questions for a self-test; and manifest.json,
    which has no time, no path and nobody's name in it."""
    shutil.copytree(device_model.path, work.out, dirs_exist_ok=True)
    description = device_model.description()
    manifest = {
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
        "licence": {"weights": config.licence, "files": [LICENCES, *([WEIGHTS] if config.licence_file else [])]},
        "documents": {"model_card": CARD, "bill_of_materials": BILL},
        "self_test": _self_test(evaluation, config, work.out),
    }
    _write_documents(manifest, model, config, work.out)
    write_manifest(work.out, manifest)
    return Bundle(work.out)


def _findings(description: dict[str, Any], model: QuantizedModel, device: DeviceProfile) -> dict[str, Any]:
    """What may go wrong on the device, and what is not computed in float16."""
    held = {"precision": description["precision"]} if "precision" in description else {}
    return {**held, "risks": risks_of(description, model, device)}


def _preprocessing(device_model: DeviceModel) -> dict[str, Any]:
    """How to prepare an image and a prompt; nothing for a user's module."""
    if not (device_model.path / "preprocessing.json").is_file():
        return {}
    return {"tokenizer": "tokenizer.json", "preprocessing": device_model.read_json("preprocessing.json")}


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


def _self_test(evaluation: Evaluation, config: PackageConfig, out: Path) -> list[dict[str, Any]]:
    """Copy the images of the questions that an installation is asked; return them with the right answers."""
    drawn = evaluation.metrics().get("questions", {}).get("source") == "procedural"
    proofs = evaluation.proofs() if drawn or config.own_questions else []
    asked = []
    for number, proof in enumerate(proofs[: config.self_test]):
        image = f"self_test/{number}.png"
        (out / "self_test").mkdir(exist_ok=True)
        shutil.copyfile(evaluation.path / proof["image"], out / image)
        asked.append({"image": image, "question": proof["question"], "answer": proof["answer"]})
    return asked


def _write_documents(manifest: dict[str, Any], model: QuantizedModel, config: PackageConfig, out: Path) -> None:
    """Write the licences, the card, and last the bill of materials of all other files."""
    made_by, described = tools(), model.read_json("config.json")
    if config.licence_file:
        shutil.copyfile(config.licence_file, out / WEIGHTS)
    text = licences(manifest["runtime"], config.licence, config.licence_file is not None, made_by)
    (out / LICENCES).write_text(text, encoding="utf-8")
    store = model.store()
    parameters = sum(store.format(name).size for name in store.names())
    (out / CARD).write_text(
        model_card(manifest, described, _METHODS[model.weights_were()], parameters), encoding="utf-8"
    )
    (out / BILL).write_bytes(bill_of_materials(manifest, files_of(out), described, made_by))
