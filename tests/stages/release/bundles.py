"""Bundles for tests: real manifests around made-up weights, without a build."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.release.manifest import Manifest, write_manifest

FILES = {
    "encoder.onnx": b"graph of the encoder",
    "decoder.onnx": b"graph of the decoder",
    "tokenizer.json": b'{"model": {}}',
    "sbom.cdx.json": b"{}",
    "MODEL_CARD.md": b"# A model\n",
}


def make_bundle(
    folder: Path,
    device: str = "pixel-8",
    version: str = "1.0.0",
    *,
    name: str = "demo",
    weights: int = 50_000,
    seed: int = 0,
    files: Mapping[str, bytes] | None = None,
    **values: Any,
) -> Manifest:
    """Write a bundle into the folder, which need not exist.

    weights: bytes of decoder.onnx.data, drawn by `seed`. files: more of them, or others under the same names. values:
    members of the manifest that are to be others.
    """
    contents = {**FILES, "decoder.onnx.data": random.Random(seed).randbytes(weights), **(files or {})}
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return write_manifest(
        folder,
        {
            "name": name,
            "version": version,
            "device": {"name": device},
            "runtime": "onnxruntime",
            "model": {"runtime": "onnxruntime", "files": {"encoder": "encoder.onnx", "decoder": "decoder.onnx"}},
            "weights": [],
            "validation": {"gates": [{"metric": "size_mib", "value": 1.0, "bound": 2.0, "passed": True}]},
            "licence": {"weights": None, "files": []},
            "documents": {"model_card": "MODEL_CARD.md", "bill_of_materials": "sbom.cdx.json"},
            "self_test": [],
            **values,
        },
    )
