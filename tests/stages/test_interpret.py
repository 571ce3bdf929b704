"""Captured graphs, run in torch weight by weight, give what the model itself gives."""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.artifacts import QuantizedModel
from stages.lowering.capture import capture_decoder, capture_encoder, capture_fixed
from stages.lowering.interpret import run_graph
from stages.models.qwen2 import CachedContext
from stages.models.vlm import ModelConfig, ModuleConfig
from tests.rounded import rounded
from tests.toy import toy_checkpoint

TOKENS, CONTEXT, IMAGE = 7, 16, 258


class Gated(nn.Module):
    """Two outputs, a constant, an operator with several results, an integer input."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.words = nn.Embedding(5, width)
        self.both = nn.Linear(width, 2 * width)
        self.register_buffer("shift", torch.arange(width).float(), persistent=False)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gate = self.both(x + self.words(ids)).chunk(2, dim=-1)
        return value * F.sigmoid(gate) + self.shift, gate


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> QuantizedModel:
    path: Path = tmp_path_factory.mktemp("toy")
    return rounded(toy_checkpoint(path / "checkpoint", tied=True), path / "quantized")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def fetch_of(model: QuantizedModel):
    store = model.store()
    return lambda name: torch.from_numpy(store.dense(name))


def test_the_encoder(model):
    image = random(1, 3, 32, 32)
    (found,) = run_graph(capture_encoder(model.config()), fetch_of(model), {"image": image})
    with torch.no_grad():
        torch.testing.assert_close(found, model.model().encode(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", [True, False])
def test_the_decoder(model, head):
    config = model.config()
    text = config.text
    ids = torch.tensor([[IMAGE, IMAGE, 7, 40, 3, IMAGE, 99]], dtype=torch.int32)
    rows, position = random(1, TOKENS, text.hidden_size), torch.tensor([4], dtype=torch.int32)
    caches = [random(1, text.num_key_value_heads, CONTEXT, text.head_dim) for _ in range(2 * text.num_hidden_layers)]
    inputs = {"input_ids": ids, "image_features": rows, "position": position}
    inputs |= {f"caches_{index}": cache for index, cache in enumerate(caches)}
    found = run_graph(capture_decoder(config, TOKENS, CONTEXT, head=head), fetch_of(model), inputs)
    eager, context = model.model(), CachedContext(position, caches, text)
    with torch.no_grad():
        hidden = eager.text.hidden(eager.embed(ids, rows), context)
        expected = [eager.text.head(hidden) if head else hidden, *context.caches]
    assert len(found) == len(expected) == 1 + len(caches)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)


def test_a_module():
    module = Gated()
    inputs = {"x": {"shape": [2, 3, 8], "dtype": "float32"}, "ids": {"shape": [2, 3], "dtype": "int32"}}
    config = ModuleConfig(f"{__name__}.Gated", {}, inputs, ["value", "gate"])
    program = capture_fixed(ModelConfig(None, None, None, config))["main"]
    state = module.state_dict()
    values = {"x": random(2, 3, 8), "ids": torch.tensor([[0, 1, 2], [3, 4, 0]], dtype=torch.int32)}
    seen: list[str] = []
    found = run_graph(program, state.__getitem__, values, lambda node, value: seen.append(node.name))
    with torch.no_grad():
        for value, other in zip(found, module(**values), strict=True):
            torch.testing.assert_close(value, other)
    assert len(seen) > len(set(seen))  # each result of chunk


def test_one_matrix_at_a_time(model):
    """And each is asked for where it is needed, the tied one once where there is no head."""
    alive: set[str] = set()
    most, asked = 0, []
    store = model.store()

    def fetch(name: str) -> torch.Tensor:
        nonlocal most
        tensor = torch.from_numpy(store.dense(name))
        if tensor.ndim > 1:
            asked.append(name)
            alive.add(name)
            weakref.finalize(tensor, alive.discard, name)
            most = max(most, len(alive))
        return tensor

    text = model.config().text
    inputs = {
        "input_ids": torch.zeros(1, TOKENS, dtype=torch.int32),
        "image_features": torch.zeros(1, TOKENS, text.hidden_size),
        "position": torch.zeros(1, dtype=torch.int32),
    }
    cache = torch.zeros(1, text.num_key_value_heads, CONTEXT, text.head_dim)
    inputs |= {f"caches_{index}": cache for index in range(2 * text.num_hidden_layers)}
    run_graph(capture_decoder(model.config(), TOKENS, CONTEXT, head=False), fetch, inputs)
    run_graph(capture_encoder(model.config()), fetch, {"image": torch.zeros(1, 3, 32, 32)})
    matrices = [name for name in store.names() if len(store.format(name).shape) > 1]
    assert most == 1 and sorted(asked) == matrices and np.all([not alive])
