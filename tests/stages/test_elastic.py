"""The elastic view: what a sorted model computes, what its subnets are, and how they become checkpoints."""

import dataclasses
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipelines.errors import ConfigError, StageError
from stages.artifacts import Checkpoint
from stages.elastic.extraction import extract
from stages.elastic.order import part, permute, units
from stages.elastic.sorting import sorted_model
from stages.elastic.space import Space
from stages.elastic.view import FACTORS, Elastic
from stages.load import load
from stages.models.vlm import ModelConfig as Configuration
from stages.schema import ModelConfig
from stages.search_artifacts import Supernet
from tests import supernets
from tests.reader import reader, shape, workspace
from tests.supernets import questions, rich, space_config
from tests.toy import toy_config

torch.set_num_threads(1)
SIZES: dict[str, Configuration] = {
    "toy": shape(),
    "tied": shape(tie_word_embeddings=True),
    "rich": rich(),
    "a head of low rank": shape(head_rank=24),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint and the supernet of a size of SIZES."""
    return cache(lambda name: supernets.made(tmp_path_factory.mktemp("elastic"), SIZES[name]))


@pytest.mark.parametrize("name", SIZES)
def test_a_sorted_model_computes_what_the_model_computes(name: str, made: Any) -> None:
    checkpoint, supernet = made(name)
    model, elastic, source = checkpoint.model(), supernet.elastic(), questions(checkpoint)
    (batch,) = source.batches(20, 21)
    with torch.no_grad():
        expected = source.outputs(model, batch)
        found = elastic.answers(supernet.space().configured({}), partial(source.outputs, batch=batch))
    torch.testing.assert_close(found.visual, expected.visual, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)
    assert any(not torch.equal(value, elastic.tensors[key]) for key, value in model.state_dict().items())


def test_a_whole_rank_of_the_heads_factors_is_the_head(made: Any) -> None:
    _, supernet = made("toy")
    tensors = supernet.elastic().tensors
    down, up = (tensors[name] for name in FACTORS)
    head = tensors["text.lm_head.weight"]
    torch.testing.assert_close(up @ down, head, rtol=1e-4, atol=1e-5)
    errors = [float((up[:, :rank] @ down[:rank] - head).norm()) for rank in (8, 16, 32, 48)]
    singular = torch.linalg.svdvals(head)
    assert errors == pytest.approx([float(singular[rank:].norm()) for rank in (8, 16, 32, 48)], rel=1e-3)


@pytest.mark.parametrize("name", SIZES)
def test_no_more_than_one_size_of_what_cannot_shrink_is_kept(name: str, made: Any) -> None:
    """And a supernet has a head's factors where it has a head of its own that is whole."""
    _, supernet = made(name)
    has = set(load_file(supernet.weights)) >= set(FACTORS)
    assert has == (name != "tied") and ("head_rank" in supernet.space().largest) == (name in ("toy", "rich"))


@given(name=st.sampled_from(list(SIZES)), seed=st.integers(0, 2**32))
def test_any_architecture_has_the_tensors_of_its_model(name: str, seed: int) -> None:
    space = Space.of(SIZES[name], space_config())
    config = space.configured(space.drawn(Random(seed)))
    state = unsorted(name).state(config)
    with torch.device("meta"):
        expected = config.build().state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: each.shape for key, each in expected.items()}
    for stage in config.vision.widths:
        assert float(stage * config.vision.mlp_ratio).is_integer()


@given(name=st.sampled_from(list(SIZES)), seed=st.integers(0, 2**32))
def test_a_tower_gives_as_many_tokens_as_its_description_says(name: str, seed: int) -> None:
    space = Space.of(SIZES[name], space_config())
    config = space.configured(space.drawn(Random(seed)))
    pixels = torch.zeros(1, 3, config.vision.image_size, config.vision.image_size)
    with torch.no_grad():
        visual = unsorted(name).answers(config, lambda model: model.encode(pixels))
    assert visual.shape == (1, config.vision.tokens, config.text.hidden_size) and config.vision.tokens > 0


@cache
def unsorted(name: str) -> Elastic:
    """Any weights in any order."""
    full = SIZES[name]
    torch.manual_seed(0)
    tensors = {key: value.detach() for key, value in full.build().state_dict().items()}
    if "text.lm_head.weight" in tensors:
        width, words = full.text.hidden_size, full.text.vocab_size
        tensors |= dict(zip(FACTORS, (torch.randn(width, width), torch.randn(words, width)), strict=True))
    layers = {f"vision.stages.{index}.blocks": range(depth)[::-1] for index, depth in enumerate(full.vision.depths)}
    return Elastic(full, tensors, {**layers, "text.layers": range(full.text.num_hidden_layers)[::-1]})


@pytest.mark.parametrize("name", ["toy", "rich", "a head of low rank"])
def test_a_subnet_is_an_ordinary_checkpoint_that_answers_the_same(name: str, made: Any, tmp_path: Path) -> None:
    checkpoint, supernet = made(name)
    space, elastic, source = supernet.space(), supernet.elastic(), questions(checkpoint)
    (batch,) = source.batches(20, 21)
    for architecture in (space.smallest, space.drawn(Random(name))):
        config = space.configured(architecture)
        path = tmp_path / str(architecture == space.smallest)
        files = extract(supernet, architecture, checkpoint, path / "files")
        loaded = load(ModelConfig(str(files.path), None, None, None, None, None), loading(path))
        assert loaded.config() == config
        assert loaded.preprocessing()["image_size"] == config.vision.image_size
        assert {value.dtype for value in load_file(loaded.weights).values()} == {torch.float16}
        with torch.no_grad():
            halved = Elastic(
                elastic.full, {key: value.half().float() for key, value in elastic.tensors.items()}, elastic.layers
            )
            expected = halved.answers(config, partial(source.outputs, batch=batch)).logits
            found = source.outputs(loaded.model(), batch).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def loading(path: Path) -> Any:
    return workspace(path / "load")


@pytest.mark.parametrize("name", ["toy", "rich"])
def test_gradients_of_a_subnet_reach_what_it_is_cut_from_and_nothing_else(name: str) -> None:
    whole = unsorted(name)
    tensors = {key: value.clone().requires_grad_() for key, value in whole.tensors.items()}
    elastic, space = Elastic(whole.full, tensors, whole.layers), Space.of(SIZES[name], space_config())
    config = space.configured(space.smallest)
    state = elastic.state(config)
    sum((each.square().sum() for each in state.values()), torch.zeros(())).backward()
    touched = {key: int((value.grad != 0).sum()) for key, value in tensors.items() if value.grad is not None}
    assert sum(touched.values()) == sum(int((each != 0).sum()) for each in state.values())
    assert not any(".layers.0." in key for key in touched)  # of two or three layers, the last are kept
    assert {key for key in touched if "lm_head" in key} == set(FACTORS)


@pytest.mark.parametrize("name", ["toy", "rich"])
def test_units_cover_tensors_as_they_are_and_orders_can_be_undone(name: str) -> None:
    elastic, random = unsorted(name), torch.Generator().manual_seed(1)
    tensors = dict(elastic.tensors)
    orders = [(group, torch.randperm(group.count, generator=random)) for group in units(elastic.full)]
    for group, order in orders:
        for axis in group.axes:
            assert part(tensors, axis).shape[0] == group.count, axis
        permute(tensors, group, order)
    changed = sum(not torch.equal(tensors[key], value) for key, value in elastic.tensors.items())
    assert changed > len(tensors) / 2
    for group, order in reversed(orders):
        permute(tensors, group, order.argsort())
    for key, value in elastic.tensors.items():
        assert torch.equal(tensors[key], value), key


@given(seed=st.integers(0, 2**32), name=st.sampled_from(["toy", "rich"]))
def test_any_order_of_any_units_leaves_the_function_as_it_is(seed: int, name: str) -> None:
    elastic, random = unsorted(name), torch.Generator().manual_seed(seed)
    groups = list(units(elastic.full))
    chosen = [groups[place] for place in torch.randint(len(groups), (3,), generator=random)]
    tensors = dict(elastic.tensors)
    for group in chosen:
        permute(tensors, group, torch.randperm(group.count, generator=random))
    images = torch.randn(1, 3, 32, 32, generator=random)
    config = Space.of(elastic.full, space_config()).configured({})
    layers = {prefix: sorted(order) for prefix, order in elastic.layers.items()}
    with torch.no_grad():
        answers = [_answers(Elastic(elastic.full, each, layers), config, images) for each in (elastic.tensors, tensors)]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-4)


def _answers(elastic: Elastic, config: Configuration, images: torch.Tensor) -> torch.Tensor:
    from stages.models.qwen2 import MaskedContext

    def function(model: Any) -> torch.Tensor:
        visual = model.encode(images)
        count = visual.shape[1]
        mask = torch.ones(count, count).tril().bool()
        return model.text(visual, MaskedContext(torch.arange(count), mask, config.text))

    found: torch.Tensor = elastic.answers(config, function)
    return found


def test_units_without_weights_come_last(tmp_path: Path) -> None:
    """Of every kind: channels and heads of the tower, hidden units, groups of heads, and heads of a group."""
    size = rich()
    checkpoint = reader(tmp_path / "checkpoint", size=size)
    state = {key: value.float() for key, value in load_file(checkpoint.weights).items()}
    silent = [  # a rectified unit that is never active is worth as little as none; layer 2 loses one of its groups
        group
        for group in units(size)
        if group.name != "vision.expansion" and (".2.self_attn" in group.name) == group.name.endswith(".groups")
    ]
    for group in silent:
        for axis in group.axes:
            if axis.read:
                _silence(state, axis)
    save_file(state, checkpoint.weights)
    source = questions(checkpoint)
    elastic = sorted_model(checkpoint.model(), source, source.batches(0, 2))
    for group in silent:
        read = sum(part(elastic.tensors, axis).abs().sum(1) for axis in group.axes if axis.read)
        assert read[-1] == 0 and read[:-1].all(), group.name


def _silence(state: dict[str, torch.Tensor], axis: Any) -> None:
    """Set the first of the axis's units to zero."""
    view = part(state, axis)
    if view.untyped_storage().data_ptr() == state[axis.name].untyped_storage().data_ptr() and view.is_contiguous():
        view[0] = 0
        return
    copied = {axis.name: torch.arange(state[axis.name].numel()).reshape(state[axis.name].shape)}
    places = part(copied, axis)[0]
    state[axis.name].view(-1)[places] = 0


def test_heads_are_ordered_by_their_own_groups_importance(tmp_path: Path) -> None:
    """Also where the groups change places."""
    size = shape(num_attention_heads=8, num_key_value_heads=4, head_dim=8, num_hidden_layers=1)
    checkpoint = reader(tmp_path / "checkpoint", size=size)
    state = {key: value.float() for key, value in load_file(checkpoint.weights).items()}
    output = state["text.layers.0.self_attn.o_proj.weight"].view(64, 4, 2, 8)
    for group, dead in enumerate((0, 1, 0, 1)):
        output[:, group, dead] = 0
    save_file(state, checkpoint.weights)
    source = questions(checkpoint)
    for start in range(4):
        elastic = sorted_model(checkpoint.model(), source, source.batches(start, start + 1))
        found = elastic.tensors["text.layers.0.self_attn.o_proj.weight"].view(64, 4, 2, 8)
        assert not found[:, :, 1].any() and found[:, :, 0].any()


def test_a_layer_that_does_nothing_comes_last(tmp_path: Path) -> None:
    checkpoint = reader(tmp_path / "checkpoint", size=rich())
    state = load_file(checkpoint.weights)
    for at in ("text.layers.1.self_attn.o_proj", "text.layers.1.mlp.down_proj"):
        state[f"{at}.weight"] = torch.zeros_like(state[f"{at}.weight"])
    for at in ("attention.projection", "ffn.contract"):
        for kind in ("weight", "bias"):
            name = f"vision.stages.2.blocks.0.{at}.{kind}"
            state[name] = torch.zeros_like(state[name])
    for name in state:  # the others matter
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            state[name] *= 8
    save_file(state, checkpoint.weights)
    source = questions(checkpoint)
    batches = list(source.batches(0, 1))
    elastic = sorted_model(checkpoint.model(), source, batches)
    assert sorted(elastic.layers["text.layers"]) == [0, 1, 2]
    with torch.no_grad():
        shallow = Space.of(checkpoint.config(), space_config(decoder_depth=[1, 0.67], tower_depth=[1, 0.5]))
        kept = {prefix: [each for each in order if each != 1] + [1] for prefix, order in elastic.layers.items()}
        kept["vision.stages.2.blocks"] = [1, 0]
        without = Elastic(elastic.full, elastic.tensors, kept)
        whole = without.answers(shallow.configured({}), partial(source.outputs, batch=batches[0])).logits
        less = shallow.configured({"depth": 2, "tower_depth_2": 1})
        torch.testing.assert_close(
            without.answers(less, partial(source.outputs, batch=batches[0])).logits, whole, rtol=1e-3, atol=1e-3
        )


def test_what_has_no_tower_is_not_searched() -> None:
    toy = toy_config()
    with pytest.raises(StageError, match="no tower") as error:
        Space.of(dataclasses.replace(toy, vision=None), space_config())
    assert error.value.hint == "Set search=off."
    with pytest.raises(StageError, match="a module of your own"):
        Space.of(Configuration(None, None), space_config())


def test_a_space_in_which_nothing_shrinks_is_refused() -> None:
    whole = {name: [1] for name in vars(space_config()) if name != "multiple"}
    with pytest.raises(ConfigError, match="no dimension that could shrink"):
        Space.of(toy_config(), space_config(**whole))


@pytest.mark.parametrize(
    ("change", "name", "values"),
    [
        ({"decoder_depth": [1, 0.01]}, "depth", (2, 1)),
        ({"decoder_depth": [0.5]}, "depth", (2, 1)),  # the whole is always there
        ({"decoder_ffn": [1, 0.9, 0.2]}, "ffn", (96, 80, 16)),
        ({"head_rank": [1, 0.01], "multiple": 48}, "head_rank", (64, 48)),
        ({"tower_width": [1, 0.75, 0.5]}, "tower_width", (64, 32)),  # 48 is one and a half heads
        ({"tower_width": [1, 0.7]}, "tower_width", None),
        ({"tower_ffn": [1, 0.75, 0.3]}, "tower_ffn", (128, 96, 32)),
        ({"resolution": [1, 0.75, 0.6, 0.1]}, "image_size", (32, 24, 16, 8)),
        ({"visual_tokens": [1, 0.5]}, "tower_stride", (1, 2)),
        ({"visual_tokens": [0.5]}, "tower_stride", (1, 2)),
        ({"visual_tokens": [0.25, 0.5, 1]}, "tower_stride", (1, 2, 4)),
        ({"kv_heads": [1, 0.5]}, "kv_heads", None),  # there is one
    ],
    ids=str,
)
def test_values_of_a_dimension(change: dict[str, Any], name: str, values: tuple[int, ...] | None) -> None:
    one = {each: [1] for each in vars(space_config()) if each != "multiple"}
    space = Space.of(toy_config(), space_config(**{**one, "decoder_depth": [1, 0.5], **change}))
    assert {each.name: each.values for each in space.dimensions}.get(name) == values


def test_narrow_towers_have_whole_feed_forwards() -> None:
    """Under the ratio that the model comes with, too."""
    toy = toy_config()
    thin = dataclasses.replace(toy, vision=dataclasses.replace(toy.vision, mlp_ratio=1.03125, head_dim=8))
    space = Space.of(thin, space_config(tower_width=[1, 0.75], tower_ffn=[1]))
    assert "tower_width" not in space.largest


def test_walks_through_a_space() -> None:
    space = Space.of(rich(), space_config())
    assert space.uniform(1) == space.largest and space.uniform(0) == space.smallest
    assert space.configured(space.largest) == rich() == space.configured({})
    for step in space.neighbours(space.largest):
        assert sum(step[name] != value for name, value in space.largest.items()) == 1
    assert not list(space.neighbours(space.smallest))
    count = 1
    for each in space.dimensions:
        count *= len(each.values)
    assert space.size == count


def test_a_supernet_is_read_as_it_was_written(made: Any) -> None:
    checkpoint, supernet = made("rich")
    assert supernet.space() == Space.of(checkpoint.config(), space_config())
    again = Supernet(supernet.path)
    assert {name: sorted(order) for name, order in again.elastic().layers.items()} == {
        "text.layers": [0, 1, 2],
        "vision.stages.0.blocks": [0, 1],
        "vision.stages.1.blocks": [0],
        "vision.stages.2.blocks": [0, 1],
    }
    assert isinstance(Checkpoint(supernet.path).preprocessing(), dict)
