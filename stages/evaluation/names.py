"""What is measured, by name: what a gate may bound. The plan asks it too, so nothing heavy is imported here."""

TASK_METRICS = ("n", "fp32", "artifact", "retention", "retention_low", "retention_high", "flips")
PREDICTED_METRICS = ("predicted.token_ms", "predicted.first_token_ms", "predicted.encode_ms")  # of known hardware
MODEL_METRICS = ("parity.top1", "parity.tokens", "size_bytes", "risks", *PREDICTED_METRICS)  # where questions are asked
PARITY_METRICS = (*MODEL_METRICS, "parity.error", "parity.features_error", "parity.rows")  # where numbers are compared
TASKS = ("ocr", "ocr_unseen_fonts", "color", "shape", "count", "existence", "position", "caption", "digit")
