"""Core ML: an operator table for the captured graph, weights as constexpr operations, packages with fixed bytes."""

from stages.lowering.coreml.importing import import_coremltools

import_coremltools()

from stages.lowering.coreml.lower import lower_coreml  # noqa: E402
from stages.lowering.coreml.weights import supported_formats  # noqa: E402

__all__ = ["lower_coreml", "supported_formats"]
