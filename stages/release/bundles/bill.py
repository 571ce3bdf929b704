"""The bill of materials of a bundle: CycloneDX 1.6, with the model as its machine-learning component.

It names what is in the bundle by sha256, the runtime that the device needs, and the libraries that made it. It has no
time, and its serial number follows from its contents, so that equal bundles have equal bills.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from stages.release.bundles.libraries import Library, library
from stages.release.manifest import File

BILL = "sbom.cdx.json"
_SPACE = uuid.UUID("9d3f6a40-6d3c-5e0e-9a53-0f1d8f2f7c11")  # of the serial numbers


def bill_of_materials(
    manifest: dict[str, Any], files: Sequence[File], config: dict[str, Any], tools: Sequence[Library]
) -> bytes:
    """Return the bill of the bundle that `manifest` describes, as JSON. files: all but the manifest and the bill.

    config: the model's config.json.
    """
    model = Component(
        name=manifest["name"],
        version=manifest["version"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{manifest['name']}@{manifest['version']}",
        description=f"for {manifest['device']['title']}, in {manifest['runtime']}",
        licenses=_licences(manifest["licence"]["weights"] or ""),
    )
    bom = Bom(
        metadata=BomMetaData(component=model, tools=ToolRepository(components=[_tool(each) for each in tools])),
        components=[*map(_file, files), *_runtime(manifest["runtime"])],
    )
    bom.register_dependency(model, bom.components)
    value = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    value["metadata"].pop("timestamp")
    value["metadata"]["component"]["modelCard"] = model_card(manifest, config)
    value.pop("serialNumber", None)
    contents = json.dumps(value, sort_keys=True, ensure_ascii=False)
    value["serialNumber"] = f"urn:uuid:{uuid.uuid5(_SPACE, contents)}"
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def model_card(manifest: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return CycloneDX's modelCard, which the library does not write."""
    multimodal = "preprocessing" in manifest and "vision" in config
    task = {"task": "visual question answering" if multimodal else "text generation"}
    sides = {"inputs": ["image", "text"] if multimodal else ["text"], "outputs": ["text"]}
    language = "preprocessing" in manifest
    return {
        "modelParameters": {
            **(task if language else {}),
            "architectureFamily": str(config.get("architecture", "a module of the user's")),
            **({side: [{"format": each} for each in formats] for side, formats in sides.items()} if language else {}),
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(manifest["validation"]))},
    }


def _metrics(validation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The score of the shipped files in each task, and what share of the float model's it is, with its interval."""
    for task, found in sorted((validation.get("tasks") or {}).items()):
        yield {"type": str(found["metric"]), "slice": task, "value": _number(found["artifact"])}
        kept = {"type": "retention", "slice": task, "value": _number(found["retention"])}
        if found.get("retention_low") is not None:
            kept["confidenceInterval"] = {
                "lowerBound": _number(found["retention_low"]),
                "upperBound": _number(found["retention_high"]),
            }
        yield kept


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"


def _file(file: File) -> Component:
    return Component(
        name=file.path,
        type=ComponentType.FILE,
        bom_ref=f"file:{file.path}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
        properties=[Property(name="tapeout:size", value=str(file.size))],
    )


def _runtime(name: str) -> list[Component]:
    """What must be on the device to run the files, and is not in the bundle."""
    if name == "coreml":
        return [
            Component(name="Core ML", type=ComponentType.FRAMEWORK, bom_ref="runtime", scope=ComponentScope.EXCLUDED)
        ]
    found = library("onnxruntime")
    return [
        Component(
            name=found.name,
            version=found.version,
            type=ComponentType.LIBRARY,
            bom_ref="runtime",
            scope=ComponentScope.EXCLUDED,
            licenses=_licences(found.licence),
        )
    ]


def _tool(found: Library) -> Component:
    return Component(
        name=found.name,
        version=found.version,
        type=ComponentType.LIBRARY,
        bom_ref=found.purl,
        purl=PackageURL("pypi", name=found.name, version=found.version),
        licenses=_licences(found.licence),
    )


def _licences(text: str) -> Any:
    return [LicenseFactory().make_from_string(text)] if text else []
