"""What is measured, by name: what a gate may bound. The plan asks it too, so nothing heavy is imported here."""

TASKS = ("ocr", "ocr_unseen_fonts", "color", "shape", "count", "existence", "position", "caption", "digit")
OVERALL = "overall"  # in place of a task: all questions together

TASK_METRICS = ("n", "fp32", "artifact", "retention", "retention_low", "retention_high", "flips")
TEXT_METRICS = ("exact", "cer", "anls", "cider")  # of the artifact's answers, where they are apt
PREDICTED = (
    *("encode_ms", "prefill_ms", "first_token_ms", "token_ms", "tokens_per_s", "peak_memory_mib", "energy_j"),
    *("tokens_per_s_1min", "tokens_per_s_5min", "tokens_per_s_15min"),
)
PREDICTED_METRICS = tuple(f"predicted.{name}" for name in PREDICTED)  # of devices that enough is known of
FIDELITY_METRICS = tuple(
    f"fidelity.{name}"
    for name in ("kl", "kl_high", "agreement", "prompts", "pixels", "vocabulary", "floats", "scale_error")
)
WHERE_KNOWN = ("fidelity.floats", "fidelity.scale_error")  # gates ask nothing where weights were trained or equalized
_ALWAYS = ("size_bytes", "risks", *WHERE_KNOWN, *PREDICTED_METRICS)
_PARITY = ("parity.top1", "parity.tokens", "parity.error", "parity.features_error")
MODEL_METRICS = (*_PARITY, *FIDELITY_METRICS, *_ALWAYS)  # where questions are asked
PARITY_METRICS = (*_PARITY, "parity.rows", *_ALWAYS)  # where numbers are compared
