"""Core ML: an operator table for the captured graph, weights as constexpr operations, packages with fixed bytes."""

from stages.lowering.coreml.lower import lower_coreml
from stages.lowering.coreml.weights import supported_formats

__all__ = ["lower_coreml", "supported_formats"]
