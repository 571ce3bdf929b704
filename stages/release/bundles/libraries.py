"""The libraries that build a bundle: versions and licences, as their packages state them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import Distribution, PackageMetadata, distribution
from typing import Any

# Whose code decides what is in a bundle. conf/pipeline's `package` declares the same, so that a change of any is seen.
TOOLS = (
    "coremltools",
    "flatbuffers",
    "jinja2",
    "ml-dtypes",
    "nncf",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "pillow",
    "protobuf",
    "safetensors",
    "scikit-learn",
    "tokenizers",
    "torch",
)
_SHORT = 80  # characters: what is longer is the licence's text, not its name


@dataclass(frozen=True)
class Library:
    """version: the public one, without a build's label, so that equal releases are equal everywhere. licence: an SPDX
    expression or the name that the package gives, "" where it gives none."""

    name: str
    version: str
    licence: str

    @property
    def purl(self) -> str:
        """A package URL (purl-spec) without a registry's address."""
        return f"pkg:pypi/{self.name}@{self.version}"


def tools() -> list[Library]:
    """Return the libraries that build bundles here, by name."""
    return [library(name) for name in TOOLS]


def library(name: str) -> Library:
    """Return an installed library."""
    found = distribution(name)
    return Library(name, found.version.partition("+")[0], _licence(found.metadata))


def text_of_licence(name: str) -> str:
    """Return the text of a library's own licence, "" where its package has none."""
    return _text(distribution(name))


def _licence(metadata: PackageMetadata) -> str:
    fields: Any = metadata
    for field in ("License-Expression", "License"):
        text = (fields.get(field) or "").strip()
        if text and len(text) <= _SHORT * (2 if field == "License-Expression" else 1) and "\n" not in text:
            return str(text)
    classifiers = [each for each in fields.get_all("Classifier") or [] if each.startswith("License ::")]
    return classifiers[0].rpartition(" :: ")[2] if classifiers else ""


def _text(found: Distribution) -> str:
    names = ("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING")
    files = sorted(
        (file for file in found.files or [] if file.name in names), key=lambda file: (len(file.parts), str(file))
    )
    return files[0].read_text(encoding="utf-8").replace("\r\n", "\n") if files else ""
