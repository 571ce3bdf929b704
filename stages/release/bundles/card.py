"""The model card of a bundle: what it is, what it can do, how sure that is, and what is not known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

CARD = "MODEL_CARD.md"
_PREDICTED = {
    "encode_ms": "an image (ms)",
    "prefill_ms": "a prompt (ms)",
    "first_token_ms": "the first token (ms)",
    "token_ms": "each further token (ms)",
    "tokens_per_s": "tokens a second",
    "peak_memory_mib": "memory at its peak (MiB)",
}


def model_card(manifest: dict[str, Any], config: dict[str, Any], method: str, parameters: int) -> str:
    """Return MODEL_CARD.md of the bundle that `manifest` describes.

    config: the model's config.json. method: how the weights were quantized, in words. parameters: of the model.
    """
    return "\n".join(_lines(manifest, config, method, parameters)) + "\n"


def _lines(manifest: dict[str, Any], config: dict[str, Any], method: str, parameters: int) -> Iterator[str]:
    device, validation = manifest["device"], manifest["validation"]
    yield f"# {manifest['name']} {manifest['version']} for {device['title']}"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| architecture | {config.get('architecture', 'a module of the user')}, {parameters:,} parameters |"
    system = f", {device['minimum_os']} or later" if device.get("minimum_os") else ""
    yield f"| runs in | {manifest['runtime']}, on {device.get('chip') or 'any chip'}{system} |"
    yield f"| weights | {_formats(manifest['weights'])}; {method} |"
    yield f"| licence of the weights | {manifest['licence']['weights'] or 'not stated by whoever built this'} |"
    if preprocessing := manifest.get("preprocessing"):
        yield f"| image | {preprocessing['image_size']} pixels square, {preprocessing['aspect']} |"
        yield f"| longest answer | {preprocessing['max_new_tokens']} tokens |"
    yield ""
    yield from _scores(validation)
    yield from _predictions(validation.get("predicted") or {})
    yield from _limits(manifest, validation)


def _formats(weights: list[dict[str, Any]]) -> str:
    return ", ".join(f"{each['format']} ({each['tensors']} tensors, {each['bytes']:,} bytes)" for each in weights)


def _scores(validation: dict[str, Any]) -> Iterator[str]:
    tasks = validation.get("tasks") or {}
    if not tasks:
        yield "## What it answers"
        yield "Nothing was asked: it was checked that these files compute what the checkpoint does (`validate=parity`)."
        yield ""
        return
    asked = validation.get("questions") or {}
    yield "## What it answers"
    source = f"{asked.get('count', 0):,} held-out questions ({asked.get('source', 'unknown')})"
    yield f"These very files, on {source}, beside the float model."
    yield ""
    yield "| task | questions | float | these files | kept, 95 % interval |"
    yield "|---|---|---|---|---|"
    for task, found in sorted(tasks.items()):
        kept = _share(found.get("retention"))
        if found.get("retention_low") is not None:
            kept += f" [{_share(found['retention_low'])}, {_share(found['retention_high'])}]"
        yield f"| {task} | {found['n']} | {_share(found['fp32'])} | {_share(found['artifact'])} | {kept} |"
    gates = validation.get("gates") or []
    yield ""
    yield f"Gates: {sum(bool(gate.get('passed')) for gate in gates)} of {len(gates)} passed; manifest.json lists them."
    yield ""


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def _predictions(predicted: dict[str, Any]) -> Iterator[str]:
    rows = [(title, predicted[key]) for key, title in _PREDICTED.items() if key in predicted]
    if not rows:
        return
    yield "## What is predicted for the device"
    yield "Nothing has measured this on the device. Intervals marked judged rest on no measurement of such a device."
    yield ""
    yield "| | predicted | interval |"
    yield "|---|---|---|"
    for title, found in rows:
        judged = ", judged" if found.get("judged") else ""
        yield f"| {title} | {found['value']:.4g} | {found['low']:.4g} to {found['high']:.4g}{judged} |"
    yield ""


def _limits(manifest: dict[str, Any], validation: dict[str, Any]) -> Iterator[str]:
    yield "## What to know before it ships"
    if (validation.get("questions") or {}).get("source") == "procedural":
        yield "- It was asked drawn questions of the kinds above, and no others: nothing is known of photographs, other"
        yield "  languages, or people."
    yield "- It answers what is most likely, and may be wrong with confidence. Do not let it decide over people."
    counted = Counter(risk.get("rule", "other") for risk in manifest.get("risks") or [])
    if counted:
        told = ", ".join(f"{rule} ({count})" for rule, count in sorted(counted.items()))
        places = f"{sum(counted.values())} places may be slow or imprecise on the chip, by static rules"
        yield f"- {places}: {told}. manifest.json has them."
    yield "- `tapeout verify` checks these files against their signature; LICENCES.md and sbom.cdx.json say what they"
    yield "  are made of."
