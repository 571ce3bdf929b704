"""What a model computes, counted: against torch's own counter, and by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipelines.errors import StageError
from stages.devices.operators import Operator, graphs, parameter_shapes, parameter_sizes
from stages.models.vlm import Encoder, ModelConfig, ModuleConfig, VisionLanguageModel
from tests.toy import toy_config

CONTEXT, TEXT, VISUAL = 64, 9, 32


def named(operators: tuple[Operator, ...], name: str) -> list[Operator]:
    return [operator for operator in operators if operator.name == name]


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return toy_config()


def test_the_encoders_products_are_those_that_torch_counts(config: ModelConfig) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        Encoder(VisionLanguageModel(config))(torch.empty(1, 3, 32, 32))
    found = graphs(config, context=CONTEXT, text_tokens=TEXT)["encoder"]
    assert sum(operator.flops for operator in found) == counter.get_total_flops()


def test_the_decoders_products_are_those_of_its_matrices_and_caches(config: ModelConfig) -> None:
    text = config.text
    head, layer = 288 * 64, 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96
    for name, tokens, rows in (("decode", 1, CONTEXT), ("prefill", TEXT + VISUAL, TEXT + VISUAL)):
        found = graphs(config, context=CONTEXT, text_tokens=TEXT)[name]
        attention = 2 * 2 * tokens * rows * text.num_attention_heads * text.head_dim
        expected = text.num_hidden_layers * (2 * tokens * layer + attention) + 2 * head  # logits of the last alone
        assert sum(operator.flops for operator in found) == expected


def test_a_graph_reads_each_of_its_weights_once(config: ModelConfig) -> None:
    found = graphs(config, context=CONTEXT, text_tokens=TEXT)
    for name in ("prefill", "decode"):
        read = [weight for operator in found[name] for weight in operator.weights]
        expected = {weight for weight in parameter_shapes(config) if weight.startswith("text.")}
        assert sorted(read) == sorted(expected - {"text.embed_tokens.weight"})  # of which rows are read
    read = [weight for operator in found["encoder"] for weight in operator.weights]
    assert sorted(read) == sorted(name for name in parameter_shapes(config) if not name.startswith("text."))


def test_a_shared_head_reads_the_whole_table() -> None:
    read = graphs(toy_config(tied=True), context=CONTEXT, text_tokens=TEXT)["decode"][-1]
    assert (read.name, read.weights) == ("linear", ("text.embed_tokens.weight",))


def test_bytes_are_what_goes_in_and_out(config: ModelConfig) -> None:
    found = graphs(config, context=CONTEXT, text_tokens=TEXT)["decode"]
    gate = next(each for each in named(found, "linear") if "gate_proj" in each.weights[0])
    assert (gate.activation_bytes, gate.elements) == (4 * (64 + 96), 96)
    cached = named(found, "cached_attention")
    assert len(cached) == config.text.num_hidden_layers
    new, rows = 2 * 32, 2 * CONTEXT * 32  # keys and values: of this token, written, and of the whole cache, read
    assert cached[0].activation_bytes == 4 * (64 + new + rows + 64 + new)


def test_views_are_no_operators(config: ModelConfig) -> None:
    for operators in graphs(config, context=CONTEXT, text_tokens=TEXT).values():
        assert not {operator.name for operator in operators} & {"view", "transpose", "permute", "unbind", "empty"}
        assert all(operator.activation_bytes for operator in operators)


def test_a_text_model_has_no_encoder(config: ModelConfig) -> None:
    found = graphs(ModelConfig(None, config.text), context=CONTEXT, text_tokens=TEXT)
    assert sorted(found) == ["decode", "prefill"]


def test_the_tokens_of_the_image_are_part_of_the_prompt(config: ModelConfig) -> None:
    one, other = (graphs(config, context=CONTEXT, text_tokens=count)["prefill"] for count in (4, 5))
    assert config.vision.tokens == VISUAL
    key = next(each for each in named(one, "linear") if "k_proj.weight" in each.weights[0])
    assert key.elements == (VISUAL + 4) * 32
    assert sum(each.flops for each in other) > sum(each.flops for each in one)


def test_a_context_shorter_than_the_prompt_is_refused(config: ModelConfig) -> None:
    with pytest.raises(StageError, match="a context of 40 tokens is shorter than a prompt of 41"):
        graphs(config, context=40, text_tokens=TEXT)


def test_a_users_module_is_refused() -> None:
    module = ModelConfig(None, None, None, ModuleConfig("torch.nn.Linear", {}, {}, []))
    with pytest.raises(StageError, match="a user's module"):
        graphs(module, context=16, text_tokens=TEXT)


def test_sizes_are_those_of_the_tensors(config: ModelConfig) -> None:
    state = VisionLanguageModel(config).state_dict()
    assert parameter_sizes(config) == {name: tensor.numel() for name, tensor in state.items()}
