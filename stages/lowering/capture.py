"""Capture: one graph a function, by torch.export under FakeTensorMode, so that no weight is ever in memory.

Parameters carry the checkpoint's names (vision.*, projector.*, text.*); a lowering asks its weight source for them.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from stages.models.vlm import Decoder, Encoder, ModelConfig, VisionLanguageModel


def capture_encoder(config: ModelConfig) -> ExportedProgram:
    """The graph image (1, 3, S, S) float32 -> features (1, T, hidden_size)."""
    size = config.vision.image_size
    with FakeTensorMode():
        encoder = Encoder(VisionLanguageModel(config)).eval()
        return torch.export.export(encoder, (torch.empty(1, 3, size, size),), strict=False)


def capture_decoder(config: ModelConfig, tokens: int | None, context: int) -> ExportedProgram:
    """The graph (input_ids (1, N) int32, image_features (1, N, D), position (1,) int32, caches) -> (logits, caches).

    tokens: N, fixed in the graph, or None for any number; context: rows of the caches.
    """
    text = config.text
    varying = {1: Dim("tokens", min=1, max=context)} if tokens is None else None
    dynamic_shapes = (varying, varying, None, [None] * (2 * text.num_hidden_layers)) if varying else None
    tokens = tokens or min(7, context)  # torch.export takes a size of 1 for a constant: any other does as example
    with FakeTensorMode(shape_env=ShapeEnv()):
        decoder = Decoder(VisionLanguageModel(config)).eval()
        cache = (1, text.num_key_value_heads, context, text.head_dim)
        arguments = (
            torch.zeros(1, tokens, dtype=torch.int32),
            torch.empty(1, tokens, text.hidden_size),
            torch.zeros(1, dtype=torch.int32),
            [torch.empty(cache) for _ in range(2 * text.num_hidden_layers)],
        )
        return torch.export.export(decoder, arguments, strict=False, dynamic_shapes=dynamic_shapes)
