"""Numbers and names as the page says them: each figure with its unit and no more digits than it has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

ABSENT = "–"
NONE_ANSWERED = "the float model answers none"
RUNTIMES = {"coreml": "Core ML", "onnxruntime": "ONNX Runtime"}
SPEEDS = {  # {prediction: (what it is, unit, whether more is better)}
    "encode_ms": ("Image encode", "ms", False),
    "prefill_ms": ("Prefill", "ms", False),
    "first_token_ms": ("First token", "ms", False),
    "token_ms": ("Next token", "ms", False),
    "tokens_per_s": ("Decode", "tokens/s", True),
    "tokens_per_s_1min": ("Decode after 1 min", "tokens/s", True),
    "tokens_per_s_5min": ("Decode after 5 min", "tokens/s", True),
    "tokens_per_s_15min": ("Decode after 15 min", "tokens/s", True),
    "peak_memory_mib": ("Peak memory", "MiB", False),
    "energy_j": ("Energy an answer", "J", False),
}
MEASURES = {
    "retention_low": "retention, low end",
    "retention": "retention",
    "size_bytes": "size",
    "risks": "risks",
    "parity.top1": "answer tokens that torch chooses too",
    "parity.tokens": "answer tokens compared",
    "parity.rows": "rows compared",
    "parity.error": "error of the logits against torch",
    "parity.features_error": "error of the visual tokens against torch",
    "fidelity.kl": "KL to the original, nats a token",
    "fidelity.kl_high": "KL to the original, high end",
    "fidelity.agreement": "answer tokens that the original chooses too",
    "fidelity.vocabulary": "tokens with the original's numbers",
    "fidelity.prompts": "questions that become the original's tokens",
    "fidelity.pixels": "largest difference of a prepared image",
    "fidelity.floats": "tensors that stay float, as the original's",
    "fidelity.scale_error": "weights' scale, worst error",
}


def is_number(value: Any) -> TypeGuard[float]:
    """Say whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """To so many significant digits, whole numbers to all, thousands set apart by thin spaces: 0.171, 3.50, 1 240."""
    if not is_number(value):
        return ABSENT
    if value == 0:
        return "0"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if places > 6:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:,.{places}f}".replace(",", "\u202f")


def rounded(value: Any, digits: int = 3) -> str:
    """As `number`, without zeros at the end: for bounds and axes, which are round."""
    shown = number(value, digits)
    return shown.rstrip("0").rstrip(".") if "." in shown and "e" not in shown else shown


def points(value: Any) -> str:
    """A share in percent, without the sign; what is not quite all is not rounded to all."""
    if not is_number(value):
        return ABSENT
    return f"{math.floor(1e4 * value) / 100:.2f}" if 0.9995 <= value < 1 else f"{100 * value:.1f}"


def percent(value: Any) -> str:
    return f"{points(value)}\u202f%" if is_number(value) else ABSENT


def mebibytes(size: Any) -> str:
    """Bytes in MiB, to three digits and at most two places."""
    if not is_number(size):
        return ABSENT
    value = size / 2**20
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}".replace(",", "\u202f")


def kibibytes(size: Any) -> str:
    return f"{size / 1024:,.1f}".replace(",", "\u202f") if is_number(size) else ABSENT


def seconds(value: Any) -> str:
    if not is_number(value):
        return ABSENT
    if 0 < value < 0.05:
        return "<0.1 s"
    return f"{value:.1f} s" if value < 100 else f"{int(value // 60)} min {int(value % 60):02} s"


def count(amount: int, noun: str) -> str:
    """An amount with its noun: 1 gate, 12 gates, 1 350 questions."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number(amount)} {noun if amount == 1 else plural}"


def shortened(overrides: Sequence[str]) -> str:
    """Overrides in a line, long ones cut."""
    return " ".join(each if len(each) <= 80 else f"{each[:72]}…" for each in overrides)


def measured_in(metric: str) -> str:
    """The unit of a metric, or ""."""
    name = metric.rpartition(".")[2]
    if name in SPEEDS:
        return SPEEDS[name][1]
    if name in ("size_mib", "memory_mib"):
        return "MiB"
    return ""


def amount(metric: str, value: Any, bound: bool = False) -> str:
    """A metric's value with its unit: shares as percentages, bytes as MiB. bound: it is one, and so is round."""
    if not is_number(value):
        return "not measured"
    name = metric.rpartition(".")[2]
    if name == "size_bytes":
        return f"{rounded(value / 2**20) if bound else mebibytes(value)} MiB"
    if name in _SHARES or name.startswith("retention"):
        return percent(value)
    unit = measured_in(metric)
    return f"{rounded(value) if bound else number(value)} {unit}".rstrip()


def named(metric: str, task: str | None = None) -> str:
    """A metric in words: "retention, low end · ocr"."""
    kind, _, name = metric.rpartition(".")
    words = MEASURES.get(metric)
    if words is None and name in SPEEDS and kind.startswith(("predicted", "budget")):
        words = SPEEDS[name][0].lower()
    if words is None and kind == "budget":
        words = {"size_mib": "size", "memory_mib": "peak memory"}.get(name)
    words = f"{words or metric}" + (", budget" if kind == "budget" else "")
    return words + (f" of {task}" if task else "")


_SHARES = {"fp32", "artifact", "exact", "flips", "top1", "agreement", "anls", "vocabulary", "prompts", "floats"}
