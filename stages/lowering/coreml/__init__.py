"""Core ML: an operator table for the captured graph, weights as constexpr operations, packages with fixed bytes."""

from stages.lowering.coreml.lower import lower_coreml

__all__ = ["lower_coreml"]
