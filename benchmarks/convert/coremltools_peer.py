"""The usual way to Core ML: a torch decoder with cache buffers, traced, converted, its weights then rounded to int4.

Run as a script: python -m convert.coremltools_peer CHECKPOINT OUT CONTEXT. Prints a JSON object: seconds of each step.
The model is written as one writes it for coremltools: one token a call, the cache a state, the mask an input.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from convert.checkpoints import SHAPE

HEADS, SHARED, LAYERS = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"], SHAPE["num_hidden_layers"]
WIDTH, INNER = SHAPE["hidden_size"], SHAPE["intermediate_size"]
HEAD = WIDTH // HEADS


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + SHAPE["rms_norm_eps"]))


class Layer(nn.Module):
    """Named as in the checkpoint, so that load_state_dict fits."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        projections = {"q_proj": HEADS * HEAD, "k_proj": SHARED * HEAD, "v_proj": SHARED * HEAD}
        self.self_attn = nn.ModuleDict({name: nn.Linear(WIDTH, rows) for name, rows in projections.items()})
        self.self_attn["o_proj"] = nn.Linear(WIDTH, WIDTH, bias=False)
        sizes = {"gate_proj": (WIDTH, INNER), "up_proj": (WIDTH, INNER), "down_proj": (INNER, WIDTH)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})


class Decoder(nn.Module):
    """ids (1, N), mask (1, 1, N, end): the last N of `end` positions. Returns logits (1, N, vocabulary)."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(SHAPE["vocab_size"], WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm()
        angles = torch.arange(context)[:, None] * SHAPE["rope_theta"] ** (-torch.arange(0, HEAD, 2) / HEAD)
        self.register_buffer("cosine", angles.repeat(1, 2).cos(), persistent=False)
        self.register_buffer("sine", angles.repeat(1, 2).sin(), persistent=False)
        for name in ("key_cache", "value_cache"):
            self.register_buffer(name, torch.zeros(LAYERS, SHARED, context, HEAD), persistent=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        count, end = ids.shape[1], mask.shape[-1]
        start, x = end - count, self.embed_tokens(ids)
        for index, layer in enumerate(self.layers):
            normed = layer.input_layernorm(x)
            query, key, value = (
                layer.self_attn[name](normed).view(1, count, -1, HEAD).transpose(1, 2)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            query, key = self.turned(query, start, end), self.turned(key, start, end)
            self.key_cache[index : index + 1, :, start:end, :] = key
            self.value_cache[index : index + 1, :, start:end, :] = value
            keys = self.key_cache[index : index + 1, :, :end, :].repeat_interleave(HEADS // SHARED, 1)
            values = self.value_cache[index : index + 1, :, :end, :].repeat_interleave(HEADS // SHARED, 1)
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            x = x + layer.self_attn["o_proj"](attended.transpose(1, 2).reshape(1, count, WIDTH))
            normed = layer.post_attention_layernorm(x)
            inner = F.silu(layer.mlp["gate_proj"](normed)) * layer.mlp["up_proj"](normed)
            x = x + layer.mlp["down_proj"](inner)
        return F.linear(self.norm(x), self.embed_tokens.weight)

    def turned(self, x: torch.Tensor, start: int, end: int) -> torch.Tensor:
        left, right = x.chunk(2, -1)
        return x * self.cosine[start:end] + torch.cat((-right, left), -1) * self.sine[start:end]


def main(checkpoint: Path, out: Path, context: int) -> dict[str, Any]:
    import coremltools as ct
    import numpy as np
    from coremltools.optimize import coreml as optimize

    clock, seconds = time.monotonic(), {}

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = round(time.monotonic() - clock, 2), time.monotonic()

    model = Decoder(context).eval().requires_grad_(False)
    weights = load_file(checkpoint / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    del weights
    lap("load")
    example = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, context)
    traced = torch.jit.trace(model, example, check_trace=False)
    lap("trace")
    states = [
        ct.StateType(ct.TensorType(shape=model.key_cache.shape, dtype=np.float16), name=name)
        for name in ("key_cache", "value_cache")
    ]
    package = ct.convert(
        traced,
        inputs=[
            ct.TensorType("ids", (1, 1), dtype=np.int32),
            ct.TensorType("mask", (1, 1, 1, context), dtype=np.float16),
        ],
        outputs=[ct.TensorType("logits", dtype=np.float16)],
        states=states,
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    lap("convert")
    rounding = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=32
    )
    package = optimize.linear_quantize_weights(package, optimize.OptimizationConfig(global_config=rounding))
    lap("int4")
    package.save(str(out))
    lap("save")
    return {"seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
