"""The licences of a bundle, for people: of the weights, of what runs them, of what made it."""

from __future__ import annotations

from collections.abc import Sequence

from stages.release.bundles.libraries import Library, library, text_of_licence

LICENCES = "LICENCES.md"
WEIGHTS = "LICENCE-WEIGHTS.txt"


def licences(runtime: str, weights: str | None, has_text: bool, tools: Sequence[Library]) -> str:
    """Return LICENCES.md. weights: an SPDX expression, or None where whoever built the bundle has said nothing."""
    if weights is None:
        said = "Whoever built this bundle has not said under which licence its weights are (`package.licence`)."
    else:
        said = f"{weights}." + (f" Its text: {WEIGHTS}." if has_text else "")
    parts = ["# Licences", "", "## Weights", said, "", "## Runtime, which the app brings along"]
    if runtime == "coreml":
        parts += ["Core ML is a part of the operating system."]
    else:
        found = library("onnxruntime")
        parts += [f"ONNX Runtime ({found.version} validated these files): {found.licence}.", ""]
        parts += [f"    {line}".rstrip() for line in text_of_licence("onnxruntime").strip().split("\n")]
    parts += ["", "## Libraries that made it", "None of their code is in the bundle.", ""]
    parts += ["| library | version | licence |", "|---|---|---|"]
    parts += [f"| {each.name} | {each.version} | {each.licence or 'not stated'} |" for each in tools]
    return "\n".join(parts) + "\n"
