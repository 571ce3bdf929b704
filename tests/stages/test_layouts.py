"""Layouts of others: the same model comes out as theirs computes, whatever form its tower is stored in."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional as F

from pipelines.config import load_config
from pipelines.errors import CheckpointError, ConfigError
from pipelines.project import Project, find_project
from pipelines.workspace import Event, Log, Workspace
from stages.artifacts import Checkpoint
from stages.data.image import preprocess
from stages.load import load
from stages.models.description import check_config
from stages.models.layouts import apple, transformers
from stages.models.layouts.new import new_checkpoint
from stages.models.layouts.new_weights import write_random
from stages.models.layouts.tensors import check_tensors
from stages.models.layouts.tower import describe
from stages.models.qwen2 import CachedContext, MaskedContext
from stages.models.vlm import ModelConfig as Configuration
from stages.schema import ModelConfig
from tests.fastvithd import Apple, Oracle, Timm
from tests.toy import toy_tokenizer

PROJECT = find_project(Path(__file__).parents[2])
KEYS = Path(__file__).parent / "keys"
ORACLES = {"apple": Apple, "transformers": Timm}
PROJECTORS = {
    "apple": ("model.mm_projector.0", "model.mm_projector.2"),
    "transformers": ("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"),
}


def shape_of(name: str) -> dict[str, Any]:
    return dict(load_config(PROJECT, [f"model={name}"]).groups["model"]["shape"])


@pytest.fixture(scope="module")
def tiny() -> Configuration:
    """fastvlm-tiny with images of 128 pixels: 4 tokens."""
    config = check_config(shape_of("fastvlm-tiny"), Path("fastvlm-tiny"))
    assert config.vision is not None
    return replace(config, vision=replace(config.vision, image_size=128))


def loaded(folder: Path, work: Path, events: list[Event] | None = None, **others: Any) -> Checkpoint:
    keys = {"revision": None, "shape": None, "module": None, "inputs": None, "outputs": None, **others}
    (work / "out").mkdir(parents=True)
    send = events.append if events is not None else lambda event: None
    return load(ModelConfig(str(folder), **keys), Workspace(work / "out", work / "scratch", send))


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
    return state


@pytest.mark.parametrize("layout", ["apple", "transformers"])
@pytest.mark.parametrize("form", ["deployed", "trained", "mixed", "thin"])
def test_image_features_are_those_of_the_original(layout: str, form: str, tiny: Configuration, tmp_path: Path) -> None:
    if form == "thin":
        assert tiny.vision is not None
        tiny = replace(tiny, vision=replace(tiny.vision, mlp_ratio=1.375))
    write_random(tmp_path / "model", tiny, layout, seed=5, trained=form != "deployed")
    if form == "mixed":
        write_random(tmp_path / "other", tiny, layout, seed=6)
        state, other = load_file(tmp_path / "model" / "model.safetensors"), state_of(tmp_path / "other")
        for part in ("conv_exp", "final_conv", "network.4.", "stages.2.blocks", "network.6", "stages.3.pos_emb"):
            for name in [name for name in state if f"model.{part}" in name]:
                del state[name]
            state |= {name: tensor for name, tensor in other.items() if f"model.{part}" in name}
        save_file(state, tmp_path / "model" / "model.safetensors")
    checkpoint = loaded(tmp_path / "model", tmp_path / "work")
    assert checkpoint.config().vision == tiny.vision
    state = state_of(tmp_path / "model")
    image = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(1))
    expected = Oracle(state, ORACLES[layout]).features(image)
    first, second = ((state[f"{name}.weight"].double(), state[f"{name}.bias"].double()) for name in PROJECTORS[layout])
    projected = F.linear(F.gelu(F.linear(expected, *first)), *second)
    model = checkpoint.model()
    with torch.no_grad():
        found, features = model.vision(image), model.encode(image)
    assert 0.5 < expected.abs().max() < 200 and features.std() > 0.01
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (features - projected).abs().max() <= 2e-5 * projected.abs().max()


def test_both_layouts_give_the_same_decoder_bits(tiny: Configuration, tmp_path: Path) -> None:
    """And a tower in bfloat16 that is deployed comes through exactly."""
    for layout, body in (("apple", "model."), ("transformers", "model.language_model."), ("qwen2", "model.")):
        write_random(tmp_path / layout, tiny, layout, shards=2)
        state = state_of(tmp_path / layout)
        with loaded(tmp_path / layout, tmp_path / f"{layout}-work").tensors() as tensors:
            for name in ("embed_tokens.weight", "layers.3.mlp.down_proj.weight", "layers.0.self_attn.q_proj.bias"):
                assert tensors[f"text.{name}"].dtype == torch.bfloat16
                assert torch.equal(tensors[f"text.{name}"], state[f"{body}{name}"])
            if layout == "apple":
                stem = state["model.vision_tower.vision_tower.model.patch_embed.0.reparam_conv.weight"]
                assert torch.equal(tensors["vision.patch_embed.0.weight"], stem.float())


@pytest.mark.parametrize("heads", [{}, {"num_attention_heads": 6}, {"num_attention_heads": 2}, {"head_dim": 48}])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(
    tied: bool, heads: dict[str, int], tmp_path: Path, tiny: Configuration
) -> None:
    """Whole and step by step, from the same folder; also with heads whose width their number does not give."""
    from transformers import Qwen2ForCausalLM

    assert tiny.text is not None
    write_random(
        tmp_path / "model",
        Configuration(None, replace(tiny.text, tie_word_embeddings=tied, **heads)),
        "qwen2",
        dtype="float32",
    )
    theirs = Qwen2ForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(0, tiny.text.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0))
    ours = loaded(tmp_path / "model", tmp_path / "work").model()
    config = ours.text.config
    assert ("head_dim" in json.loads((tmp_path / "model" / "config.json").read_text())) == bool(heads)
    with torch.no_grad():
        expected = theirs(ids).logits
        context = MaskedContext(torch.arange(40), torch.ones(40, 40, dtype=torch.bool).tril(), config)
        whole = ours.text(ours.text.embed_tokens(ids), context)
        caches = [torch.zeros(1, config.num_key_value_heads, 48, config.head_dim) for _ in range(8)]
        steps = []
        for start, end in [(0, 7), *((position, position + 1) for position in range(7, 40))]:
            cached = CachedContext(torch.tensor([start]), caches, config)
            steps.append(ours.text(ours.text.embed_tokens(ids[:, start:end]), cached))
            caches = cached.caches
    assert expected.std() > 0.1
    assert (whole - expected).abs().max() <= 1e-4
    assert (torch.cat(steps, dim=1) - expected).abs().max() <= 1e-4


def test_what_transformers_saves_is_read(tmp_path: Path, tiny: Configuration) -> None:
    """Shards, its way to write the configuration, a tied head, and no chat template: a question stands alone."""
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    theirs = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=300, num_key_value_heads=1, rope_theta=1e5, tie_word_embeddings=True, eos_token_id=257, **sizes
        )
    )
    theirs.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    PreTrainedTokenizerFast(tokenizer_object=toy_tokenizer(), eos_token="<|im_end|>").save_pretrained(
        tmp_path / "model"
    )
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    checkpoint = loaded(tmp_path / "model", tmp_path / "work")
    assert checkpoint.preprocessing() == {
        "end_token": "<|im_end|>",
        "max_new_tokens": 256,
        "prompt_template": "{question}",
    }
    ids = torch.arange(20)[None]
    ours = checkpoint.model()
    config = ours.text.config
    assert (config.rope_theta, config.tie_word_embeddings) == (1e5, True)
    with torch.no_grad():
        context = MaskedContext(torch.arange(20), torch.ones(20, 20, dtype=torch.bool).tril(), config)
        difference = ours.text(ours.text.embed_tokens(ids), context) - theirs(ids).logits
    assert difference.abs().max() <= 1e-4


def test_a_head_that_differs_from_the_embedding_is_the_models_own(good: dict[str, Path], tmp_path: Path) -> None:
    """Whatever the configuration says of tying; one that is equal is not kept twice."""
    folder = tmp_path / "model"
    shutil.copytree(good["transformers"], folder)
    assert loaded(folder, tmp_path / "1").config().text.tie_word_embeddings
    tensors(lambda state: state["lm_head.weight"][5].neg_())(folder)
    checkpoint = loaded(folder, tmp_path / "2")
    assert not checkpoint.config().text.tie_word_embeddings
    with checkpoint.tensors() as stored:
        assert torch.equal(stored["text.lm_head.weight"][5], -stored["text.embed_tokens.weight"][5])
    edit("config.json", tie_word_embeddings=False, text_config__tie_word_embeddings=False)(folder)
    tensors(lambda state: state.pop("lm_head.weight"))(folder)
    with pytest.raises(CheckpointError, match="tie_word_embeddings must be true"):
        loaded(folder, tmp_path / "3")


def test_the_published_names_and_shapes_are_reproduced() -> None:
    from stages.models.layouts.new_weights import _plan

    config = check_config(shape_of("fastvlm-0.5b"), Path("fastvlm-0.5b"))
    for layout, file in (("apple", "fastvlm_tower_keys_apple"), ("transformers", "fastvlm_0.5b_keys_transformers")):
        found = {each.name: list(each.shape) for each in _plan(config, layout, "bfloat16", False)}
        lines = gzip.decompress((KEYS / f"{file}.txt.gz").read_bytes()).decode().splitlines()
        listed = {name: json.loads(shape) for name, _, shape in (line.partition(" ") for line in lines)}
        assert [name for name in listed if found.get(name) != listed[name]] == []
        tower = "model.vision_tower."
        assert {n for n in found if n.startswith(tower)} == {n for n in listed if n.startswith(tower)}
        assert sum(".layers." in name for name in found) == 24 * 12


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tiny: Configuration) -> dict[str, Path]:
    """A checkpoint in each layout, in three shards."""
    root = tmp_path_factory.mktemp("good")
    for layout in ("apple", "transformers", "qwen2"):
        write_random(root / layout, tiny, layout, shards=3)
    return {layout: root / layout for layout in ("apple", "transformers", "qwen2")}


Damage = Callable[[Path], object]
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"


def edit(file: str, **changes: Any) -> Damage:
    """Set keys, with __ between levels, of a JSON file; None removes."""

    def damage(path: Path) -> None:
        values = json.loads((path / file).read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            target = values
            for parent in parents:
                target = target[parent]
            target.pop(last, None)
            if value is not None:
                target[last] = value
        (path / file).write_text(json.dumps(values))

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change the tensors, and write them as a single file."""

    def damage(path: Path) -> None:
        state = state_of(path)
        change(state)
        for file in path.glob("model*"):
            file.unlink()
        save_file(state, path / "model.safetensors")

    return damage


def place(file: str) -> Damage:
    """Have the index name another file for one of the tensors."""
    return edit(INDEX, weight_map={"lm_head.weight": file})


def shorten(path: Path) -> None:
    data = (path / SHARD).read_bytes()
    (path / SHARD).write_bytes(data[:-1000])


def swap(path: Path) -> None:
    (path / SHARD).write_bytes((path / "model-00003-of-00003.safetensors").read_bytes())


def link(target: str) -> Damage:
    def damage(path: Path) -> None:
        (path / SHARD).unlink()
        (path / SHARD).symlink_to(target)

    return damage


def outside(path: Path) -> None:
    (path / SHARD).rename(path.parent / "elsewhere.safetensors")
    (path / SHARD).symlink_to(path.parent / "elsewhere.safetensors")


QKV = "model.vision_tower.vision_tower.model.network.7.0.token_mixer.qkv.weight"
NORM = "model.layers.1.input_layernorm.weight"
VARIANCE = "model.vision_tower.vision_tower.model.network.0.0.convffn.conv.bn.running_var"
BAD: dict[str, tuple[str, Damage, list[str]]] = {
    "missing tensor": ("apple", tensors(lambda state: state.pop(QKV)), [f"1 missing: {QKV}"]),
    "missing branch": (
        "apple",
        tensors(lambda state: state.pop("model.vision_tower.vision_tower.model.patch_embed.2.reparam_conv.bias")),
        ["1 missing: model.vision_tower.vision_tower.model.patch_embed.2.reparam_conv.bias"],
    ),
    "wrong shape": (
        "apple",
        tensors(lambda state: state.update({NORM: torch.ones(127)})),
        [f"1 of another shape: {NORM} (expected [128], found [127])"],
    ),
    "wrong dtype": (
        "apple",
        tensors(lambda state: state.update({NORM: torch.ones(128, dtype=torch.int8)})),
        [f"1 neither float16, bfloat16 nor float32: {NORM} (found I8)"],
    ),
    "not finite": (
        "apple",
        tensors(lambda state: state[NORM].__setitem__(3, float("inf"))),
        [f"NaN or infinite values in 1 tensors: {NORM} (1 of 128 values, the first at [3])"],
    ),
    "not finite once folded": (
        "apple",
        tensors(lambda state: state[VARIANCE].fill_(-1.0)),
        [f"NaN or infinite values in 1 tensors: {VARIANCE} (folded with its convolution)"],
    ),
    "not finite in the tower": (
        "transformers",
        tensors(lambda state: state["model.vision_tower.timm_model.stem.0.reparam_conv.bias"].fill_(float("nan"))),
        ["in 1 tensors: model.vision_tower.timm_model.stem.0.reparam_conv.bias (16 of 16 values"],
    ),
    "stranger": (
        "qwen2",
        tensors(lambda state: state.update({"model.layers.1.self_attn.o_proj.bias": torch.ones(128)})),
        ["1 unexpected: model.layers.1.self_attn.o_proj.bias"],
    ),
    "shard missing": (
        "apple",
        lambda path: (path / SHARD).unlink(),
        [f"{SHARD} is missing in", "places", "there are 3 in all"],
    ),
    "shard truncated": ("apple", shorten, [f"{SHARD} is truncated"]),
    "shard of another": ("apple", swap, [f"{SHARD} lacks", "of the tensors that model.safetensors.index.json places"]),
    "index escapes": (
        "apple",
        place("../other/model.safetensors"),
        ["'../other/model.safetensors'", "not a plain name"],
    ),
    "index absolute": ("apple", place("/tmp/a.safetensors"), ["'/tmp/a.safetensors'", "not a plain name within"]),
    "index names itself": ("apple", place(INDEX), [f"names the file '{INDEX}'; expected names that end in .safe"]),
    "index empty": ("apple", edit(INDEX, weight_map={}), ["weight_map is {}"]),
    "index a list": ("apple", edit(INDEX, weight_map=["a"]), ["expected an object of tensor names and file names"]),
    "index twice": (
        "apple",
        lambda path: (path / "model.safetensors").write_bytes(b""),
        ["holds both model.safetensors and model.safetensors.index.json"],
    ),
    "link in a circle": ("apple", link(SHARD), ["is a link that leads nowhere or in a circle"]),
    "link to nothing": ("apple", link("nothing.safetensors"), ["is a link that leads nowhere or in a circle"]),
    "link outside": ("apple", outside, ["is a link to", "outside of"]),
    "unknown model": (
        "apple",
        edit("config.json", model_type="llava_llama"),
        ["model_type is 'llava_llama'", "did you"],
    ),
    "anyres": (
        "apple",
        edit("config.json", image_aspect_ratio="anyres_max_9"),
        ["image_aspect_ratio is 'anyres_max_9'", "(anyres) cannot be built"],
    ),
    "spatial merge": (
        "apple",
        edit("config.json", mm_patch_merge_type="spatial_unpad"),
        ["mm_patch_merge_type is 'spatial_unpad'"],
    ),
    "other tower": (
        "apple",
        edit("config.json", mm_vision_tower="openai/clip-vit-large-patch14"),
        ["mm_vision_tower is 'openai/clip-vit-large-patch14'"],
    ),
    "other projector": ("apple", edit("config.json", mm_projector_type="linear"), ["mm_projector_type is 'linear'"]),
    "image size": (
        "apple",
        edit("config.json", mm_vision_tower="mobileclip_l_130"),
        ["vision.image_size is 130; expected a multiple of 64"],
    ),
    "text size": ("apple", edit("config.json", num_hidden_layers=5), ["12 missing: model.layers.4"]),
    "no size": ("qwen2", edit("config.json", hidden_size=None), ["missing hidden_size"]),
    "size a string": (
        "qwen2",
        edit("config.json", hidden_size="128"),
        ["text.hidden_size is '128'; expected an integer"],
    ),
    "scaled positions": (
        "qwen2",
        edit("config.json", rope_scaling={"type": "yarn", "factor": 4.0}),
        ["rope_scaling is 'yarn'; only 'default' can be built"],
    ),
    "quantized": (
        "qwen2",
        edit("config.json", quantization_config={"quant_method": "gptq"}),
        ["quantization_config is", "original, unquantized weights"],
    ),
    "no tokenizer": (
        "apple",
        lambda path: (path / "tokenizer.json").unlink(),
        ["tokenizer.json is missing in", "vocab.json and merges.txt"],
    ),
    "other tokenizer": (
        "apple",
        edit("config.json", image_token_index=700),
        ["does not know the token '<image>', and of the embedding's 576 rows none is free"],
    ),
    "no template": (
        "apple",
        edit("tokenizer_config.json", chat_template=None),
        ["has no chat template: chat_template is missing in tokenizer_config.json"],
    ),
    "template loses the image": (
        "transformers",
        lambda path: (path / "chat_template.jinja").write_text("{{ messages[0].content[1].text }}"),
        ["chat_template.jinja: the chat template does not give back <image> and the question once each"],
    ),
    "template fails": (
        "apple",
        edit("tokenizer_config.json", chat_template="{{ raise_exception('no users') }}"),
        ["the chat template cannot be rendered: no users"],
    ),
    "template asks for the day": (
        "apple",
        edit("tokenizer_config.json", chat_template="{{ strftime_now('%d') }}"),
        ["asks for today's date"],
    ),
    "template reaches out": (
        "apple",
        edit("tokenizer_config.json", chat_template="{{ messages.__class__.__mro__ }}"),
        ["the chat template cannot be rendered", "unsafe"],
    ),
    "no processor": (
        "transformers",
        lambda path: (path / "preprocessor_config.json").unlink(),
        ["preprocessor_config.json is missing"],
    ),
    "other filter": ("transformers", edit("preprocessor_config.json", resample=0), ["resample is 0; expected 2"]),
    "not square": (
        "transformers",
        edit("preprocessor_config.json", do_center_crop=False),
        ["do_center_crop is False", "square"],
    ),
    "other activation": (
        "transformers",
        edit("config.json", projector_hidden_act="gelu_pytorch_tanh"),
        ["projector_hidden_act is 'gelu_pytorch_tanh'; only 'gelu' can be built"],
    ),
    "other width": (
        "transformers",
        edit("config.json", vision_config__hidden_size=3072),
        ["hidden_size is 3072; only 512 can be built"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_gets_one_message(name: str, good: dict[str, Path], tmp_path: Path) -> None:
    layout, damage, parts = BAD[name]
    shutil.copytree(good[layout], tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(CheckpointError) as caught:
        loaded(tmp_path / "model", tmp_path / "work")
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert list((tmp_path / "work" / "out").iterdir()) == []


@pytest.mark.parametrize(("layout", "trained"), [("apple", False), ("transformers", True)])
def test_whichever_tensor_is_missing_or_of_another_shape_is_named(
    layout: str, trained: bool, tiny: Configuration, tmp_path: Path
) -> None:
    """Though the tower's size is read off the tensors themselves. A third of them, in turn."""
    write_random(tmp_path / "model", tiny, layout, trained=trained)
    read = {"apple": apple.read, "transformers": transformers.read}[layout]
    contents = read(tmp_path / "model" / "config.json", json.loads((tmp_path / "model" / "config.json").read_text()))
    names, parts = contents.weights, {"apple": apple.LAYOUT, "transformers": transformers.LAYOUT}[layout]
    whole = dict(names.entries)
    assert parts.tower is not None
    for name in sorted(contents.tensors.expected())[::3]:
        entry = whole[name]
        for change, expected in (({}, f"1 missing: {name}"), ({name: entry}, f"1 of another shape: {name}")):
            names.entries = {other: each for other, each in whole.items() if other != name}
            names.entries |= {name: replace(entry, shape=tuple(side + 1 for side in entry.shape)) for name in change}
            vision = describe({each: found.shape for each, found in names.entries.items()}, parts.tower, 128)
            with pytest.raises(CheckpointError, match=re.escape(expected)):
                check_tensors(names, parts.tensors(replace(contents.config, vision=vision), names.entries))


def test_another_size_than_the_configuration_says_is_named(good: dict[str, Path], tmp_path: Path) -> None:
    shape = shape_of("fastvlm-tiny")
    shape["vision"]["image_size"] = 128
    loaded(good["apple"], tmp_path / "1", shape=shape)
    shape["text"]["hidden_size"] = 1536
    with pytest.raises(CheckpointError, match=r"shape.text.hidden_size is 1536, but the checkpoint's .* is 128\n"):
        loaded(good["apple"], tmp_path / "2", shape=shape)


def test_what_is_no_part_of_the_model_is_named(good: dict[str, Path], tmp_path: Path) -> None:
    events: list[Event] = []
    loaded(good["apple"], tmp_path, events)
    lines = [event.text for event in events if isinstance(event, Log)]
    assert len(lines) == 1 and "model.head.weight" in lines[0] and "num_batches" not in lines[0]


def test_the_prompt_the_image_token_and_the_end_come_from_the_checkpoint(good: dict[str, Path], tmp_path: Path) -> None:
    """Both templates give facts' prompt, of a string and of parts; what the tokenizer lacks is added to it."""
    for layout in ("apple", "transformers"):
        checkpoint = loaded(good[layout], tmp_path / layout)
        preprocessing = checkpoint.preprocessing()
        assert preprocessing["prompt_template"] == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert (preprocessing["image_token"], preprocessing["end_token"]) == ("<image>", "<|im_end|>")
        assert preprocessing["aspect"] == ("pad" if layout == "apple" else "crop")
        tokenizer = checkpoint.tokenizer()
        assert tokenizer.encode("a<image>b<|im_end|>").ids[1::2] == [515, 514]
        assert checkpoint.config().image_token_id == 515


def test_the_image_token_has_the_id_that_either_key_gives(good: dict[str, Path], tmp_path: Path) -> None:
    """transformers wrote image_token_id, and writes image_token_index; here of another token than "<image>"."""
    shutil.copytree(good["transformers"], tmp_path / "model")
    edit("config.json", image_token_index=None, image_token_id=512)(tmp_path / "model")
    known = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")).id_to_token(512)
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<image>", known))
    checkpoint = loaded(tmp_path / "model", tmp_path / "work")
    assert (checkpoint.config().image_token_id, checkpoint.preprocessing()["image_token"]) == (512, known)


def test_the_rotation_may_stand_under_the_older_name(good: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(good["qwen2"], tmp_path / "model")
    edit("config.json", rope_theta=None, rope_scaling={"type": "default", "rope_theta": 5e5})(tmp_path / "model")
    text = loaded(tmp_path / "model", tmp_path / "work").config().text
    assert text is not None and text.rope_theta == 5e5


def test_a_tokenizer_of_vocabulary_and_merges_is_the_same(good: dict[str, Path], tmp_path: Path) -> None:
    """As slow tokenizers save it, in Apple's releases."""
    folder = tmp_path / "model"
    shutil.copytree(good["apple"], folder)
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in whole["model"]["merges"])
    )
    added = {str(each.pop("id")): each for each in whole["added_tokens"]}
    edit("tokenizer_config.json", added_tokens_decoder=added)(folder)
    first, second = (loaded(path, tmp_path / path.name).tokenizer() for path in (good["apple"], folder))
    text = "It's 12 o'clock,  she said.\n\n<|im_start|>été<image>"
    assert first.encode(text).ids == second.encode(text).ids
    assert first.get_vocab() == second.get_vocab()


def test_a_new_checkpoint_is_the_same_every_time_and_replaces_nothing(tmp_path: Path) -> None:
    def make(name: str, *options: str) -> dict[str, bytes]:
        out = tmp_path / name
        arguments = ["fastvlm-tiny", "--layout", "apple", "--out", str(out), *options]
        assert new_checkpoint(arguments, PROJECT) == 0
        return {file.name: file.read_bytes() for file in out.iterdir()}

    first, second, other = make("1", "--seed", "4"), make("2", "--seed", "4"), make("3", "--seed", "5")
    assert first == second
    assert first.keys() == other.keys() and first["model.safetensors"] != other["model.safetensors"]
    assert len(make("4", "--shards", "2", "--dtype", "float16", "--training-form")) == len(first) + 2
    for arguments, part in (
        (["fastvlm-tny", "--layout", "apple", "--out", "x"], "did you mean 'fastvlm-tiny'?"),
        (["reference", "--layout", "apple", "--out", "x"], "model.shape is null"),
        (["fastvlm-tiny", "--layout", "aple", "--out", "x"], "invalid choice: 'aple'"),
        (["fastvlm-tiny", "--layout", "apple", "--out", str(tmp_path / "1")], "is there already"),
        (["fastvlm-tiny", "--layout", "apple", "--out", "x", "--shards", "0"], "expected 1 or more"),
        (["fastvlm-tiny", "--layout", "apple"], "--out"),
    ):
        with pytest.raises(ConfigError) as caught:
            new_checkpoint(arguments, PROJECT)
        assert part in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3", "4"}


@pytest.mark.parametrize("layout", ["apple", "transformers", "qwen2"])
def test_a_head_of_two_matrices_is_in_no_layout_of_others(layout: str, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    model = OmegaConf.load(PROJECT.root / "conf/model/fastvlm-tiny.yaml")["model"]
    text = {"tie_word_embeddings": False, "head_rank": 32}
    (tmp_path / "conf/model").mkdir(parents=True)
    OmegaConf.save(OmegaConf.merge(model, {"shape": {"text": text}}), tmp_path / "conf/model/narrow.yaml")
    project = Project(PROJECT.root, (tmp_path / "conf",))
    with pytest.raises(ConfigError, match=rf"rank 32; the layout {layout} has no such head\n.*head_rank to null"):
        new_checkpoint(["narrow", "--layout", layout, "--out", str(tmp_path / "files")], project)
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("size", [(128, 128), (300, 190), (97, 411), (40, 30)])
@pytest.mark.parametrize("layout", ["apple", "transformers"])
def test_pixels_are_those_of_the_original_processor(
    layout: str, size: tuple[int, int], good: dict[str, Path], tmp_path: Path
) -> None:
    """To the last bit: transformers' own image processor, after LLaVA's padding for Apple's layout."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    side = {"height": 128, "width": 128}
    processor = CLIPImageProcessorPil(
        crop_size=side, image_mean=[0.0] * 3, image_std=[1.0] * 3, size={"shortest_edge": 128}
    )
    given = image
    if layout == "apple":  # config.json says "pad"
        longest = max(size)
        given = Image.new("RGB", (longest, longest), (0, 0, 0))
        given.paste(image, ((longest - size[0]) // 2, (longest - size[1]) // 2))
    expected = processor(images=given, return_tensors="np")["pixel_values"]
    found = preprocess(image, loaded(good[layout], tmp_path).preprocessing())
    np.testing.assert_array_equal(found, expected)
