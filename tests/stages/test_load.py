"""load: good checkpoints come through unchanged; each bad one gets one clear message, and nothing is written."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import CheckpointError
from pipelines.workspace import Workspace
from stages.load import load
from stages.schema import ModelConfig
from tests.toy import toy_checkpoint, toy_tokenizer


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoint(tmp_path_factory.mktemp("good") / "model").path


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    for file in good.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def model_config(path: Path, **others: object) -> ModelConfig:
    keys = {"revision": None, "shape": None, "module": None, "inputs": None, "outputs": None}
    return ModelConfig(str(path), **{**keys, **others})


def workspace(path: Path) -> Workspace:
    for name in ("out", "scratch"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return Workspace(path / "out", path / "scratch")


def test_a_good_checkpoint_keeps_every_value(folder: Path, tmp_path: Path) -> None:
    checkpoint = load(model_config(folder), workspace(tmp_path))
    before, after = load_file(folder / "model.safetensors"), load_file(checkpoint.weights)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float16 for name in before)
    assert (
        checkpoint.config().to_dict() | {}
        == checkpoint.config().from_dict(checkpoint.read_json("config.json")).to_dict()
    )
    assert sorted(path.name for path in checkpoint.path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessing.json",
        "tokenizer.json",
    ]


def test_bytes_do_not_depend_on_how_the_checkpoint_was_written(folder: Path, tmp_path: Path) -> None:
    first = load(model_config(folder), workspace(tmp_path / "1"))
    state = load_file(folder / "model.safetensors")
    save_file(dict(reversed(state.items())), folder / "model.safetensors", metadata={"host": "here"})
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()), indent=7))
    second = load(model_config(folder), workspace(tmp_path / "2"))
    for file in first.path.iterdir():
        assert file.read_bytes() == (second.path / file.name).read_bytes()


def test_loading_again_what_was_loaded_changes_nothing(folder: Path, tmp_path: Path) -> None:
    first = load(model_config(folder), workspace(tmp_path / "1"))
    second = load(model_config(first.path), workspace(tmp_path / "2"))
    for file in first.path.iterdir():
        assert file.read_bytes() == (second.path / file.name).read_bytes()


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = load_file(path / "model.safetensors")
        change(state)
        save_file(state, path / "model.safetensors")

    return damage


def values(file: str, **changes: object) -> Callable[[Path], None]:
    """Set keys, with __ between levels, of a JSON file; None removes."""

    def damage(path: Path) -> None:
        content = json.loads((path / file).read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            target = content
            for parent in parents:
                target = target[parent]
            if value is None:
                del target[last]
            else:
                target[last] = value
        (path / file).write_text(json.dumps(content))

    return damage


def rename(state: dict[str, torch.Tensor]) -> None:
    state["text.norms.weight"] = state.pop("text.norm.weight")


def poison(state: dict[str, torch.Tensor]) -> None:
    state["text.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    state["projector.0.weight"][0, 1:3] = float("inf")


def pickled(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path / "model.safetensors")


def old_pickle(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path / "model.safetensors", _use_new_zipfile_serialization=False)


def only_a_pickle(path: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def truncate(bytes_left: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:bytes_left])

    return damage


def gap(path: Path) -> None:
    file = path / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["text.norm.weight"]["data_offsets"] = [offset + 2 for offset in header["text.norm.weight"]["data_offsets"]]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def other_tokenizer(path: Path) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens([f"word{index}" for index in range(40)])
    tokenizer.save(str(path / "tokenizer.json"))


def text(file: str, content: str) -> Callable[[Path], None]:
    return lambda path: (path / file).write_text(content) and None


WEIGHTS, CONFIG, PREPROCESSING, TOKENIZER = "model.safetensors", "config.json", "preprocessing.json", "tokenizer.json"
BAD = {
    "no weights": (lambda path: (path / WEIGHTS).unlink(), ["model.safetensors is missing in", "Found config.json"]),
    "no config": (lambda path: (path / CONFIG).unlink(), ["config.json is missing in"]),
    "misnamed": (
        lambda path: (path / TOKENIZER).rename(path / "tokeniser.json"),
        ["tokenizer.json is missing", "did you mean 'tokeniser.json'?"],
    ),
    "sharded": (
        lambda path: (path / WEIGHTS).rename(path / "model-00001-of-00002.safetensors"),
        ["model.safetensors is missing", "model-00001-of-00002.safetensors", "shards need model.safetensors.index"],
    ),
    "only a pickle": (only_a_pickle, ["is missing", "pytorch_model.bin may be a Python pickle", "weights_only=True"]),
    "pickle": (pickled, ["model.safetensors is a zip archive, as torch.save writes", "was not opened", "save_file"]),
    "old pickle": (old_pickle, ["model.safetensors is a Python pickle", "expected a safetensors file"]),
    "pointer": (text(WEIGHTS, "version https://git-lfs.github.com/spec/v1"), ["a Git LFS pointer", "git lfs pull"]),
    "empty": (truncate(0), ["is truncated", "the file has 0"]),
    "cut in the header": (truncate(100), ["is truncated: its header needs", "the file has 100"]),
    "cut in the data": (truncate(90_000), ["is truncated: 90,000 bytes found", "expected from its header"]),
    "not a header": (text(WEIGHTS, "\x10" + "\0" * 7 + "{" + "x" * 30), ["is not a safetensors file", "no valid JSON"]),
    "overlap": (gap, ["is damaged", "begins at byte"]),
    "missing": (
        tensors(lambda state: state.pop("text.layers.0.mlp.up_proj.weight")),
        ["1 missing: text.layers.0.mlp.up_proj.weight", "num_hidden_layers"],
    ),
    "renamed": (
        tensors(rename),
        ["1 missing: text.norm.weight", "1 unexpected: text.norms.weight", "did you mean 'text.norm.weight'?"],
    ),
    "tied": (
        values(CONFIG, text__tie_word_embeddings=True),
        ["1 unexpected: text.lm_head.weight", "set text.tie_word_embeddings to false"],
    ),
    "untied": (
        tensors(lambda state: state.pop("text.lm_head.weight")),
        ["1 missing: text.lm_head.weight", "set text.tie_word_embeddings to true"],
    ),
    "shape": (
        tensors(lambda state: state.update({"text.norm.weight": torch.ones(63)})),
        ["1 of another shape: text.norm.weight (expected [64], found [63])"],
    ),
    "dtype": (
        tensors(lambda state: state.update({"text.norm.weight": torch.ones(64, dtype=torch.float64)})),
        ["1 neither float16, bfloat16 nor float32: text.norm.weight (found F64)", "tensor.to(torch.float16)"],
    ),
    "more layers than any": (values(CONFIG, text__num_hidden_layers=10**9), ["expected at most 1,000 layers"]),
    "layers": (values(CONFIG, text__num_hidden_layers=3), ["12 missing: text.layers.2", "and 7 more"]),
    "not finite": (
        tensors(poison),
        [
            "NaN or infinite values in 2 tensors",
            "projector.0.weight (2 of 4,096 values, the first at [0, 1])",
            "text.layers.1.mlp.up_proj.weight (1 of 6,144 values, the first at [3, 5])",
        ],
    ),
    "config not JSON": (text(CONFIG, '{"text": '), ["config.json is not valid JSON: line 1, column 10"]),
    "config a list": (text(CONFIG, "[]"), ["holds a JSON list; expected an object"]),
    "config unknown": (
        values(CONFIG, text__hidden_sise=64, text__hidden_size=None),
        ["unknown key text.hidden_sise", "did you mean 'hidden_size'?"],
    ),
    "config missing": (values(CONFIG, vision=None), ["config.json: missing vision"]),
    "config type": (values(CONFIG, text__vocab_size="288"), ["text.vocab_size is '288'; expected an integer"]),
    "config list": (values(CONFIG, vision__depths=[1, "1"]), ["vision.depths is", "expected a list of integer"]),
    "config length": (
        values(CONFIG, vision__mixers=["repmixer"]),
        ["vision.mixers has 1 entries"],
    ),
    "config mixer": (values(CONFIG, vision__mixers=["repmixer", "atention"]), ["did you mean 'attention'?"]),
    "config heads": (
        values(CONFIG, text__num_key_value_heads=3),
        ["num_key_value_heads is 3; expected a divisor"],
    ),
    "config zero": (
        values(CONFIG, text__num_hidden_layers=0),
        ["num_hidden_layers is 0; expected numbers"],
    ),
    "config image rows": (
        values(CONFIG, vision__image_size=36),
        ["vision.image_size is 36; expected a multiple of 8", "strides of the rows"],
    ),
    "config image columns": (
        values(CONFIG, vision__strides=[[1, 1], [1, 3]]),
        ["vision.image_size is 32; expected a multiple of 12", "strides of the columns"],
    ),
    "config stride": (values(CONFIG, vision__strides=[[1, 1], [0, 1]]), ["vision.strides is", "above 0"]),
    "config ffn kernel": (values(CONFIG, vision__ffn_kernel=4), ["vision.ffn_kernel is 4; expected an odd number"]),
    "config patch kernel": (values(CONFIG, vision__patch_kernel=2), ["vision.patch_kernel is 2; expected an odd"]),
    "config downsampling": (
        values(CONFIG, vision__widths=[48, 64]),
        ["vision.widths goes from 48 to 64; expected a multiple", "depthwise"],
    ),
    "config output width": (
        values(CONFIG, vision__widths=[8, 8], vision__head_dim=8),
        ["vision.widths ends in 8, times vision.expansion 8; expected at least 16"],
    ),
    "config tower heads": (values(CONFIG, vision__head_dim=24), ["vision.widths has 64, which vision.head_dim (24)"]),
    "config head": (
        values(CONFIG, text__num_attention_heads=3, text__num_key_value_heads=1),
        ["text.hidden_size is 64; expected a multiple of 2 x 3 heads"],
    ),
    "architecture": (
        values(CONFIG, architecture="llama"),
        ["architecture is 'llama'; expected one of fastvlm, qwen2, module"],
    ),
    "tokenizer kind": (text(TOKENIZER, "{}"), ["tokenizer.json is not a tokenizer"]),
    "tokenizer size": (other_tokenizer, ["token ids up to 298", "the embedding has 288 rows"]),
    "image token": (values(CONFIG, image_token_id=257), ["gives '<image>' the id 258", "image_token_id is 257"]),
    "end token": (
        values(PREPROCESSING, end_token="<|im_ent|>"),
        ["does not know the token '<|im_ent|>'", "did you mean '<|im_end|>'?"],
    ),
    "preprocessing unknown": (
        values(PREPROCESSING, standard=[1, 1, 1]),
        ["preprocessing.json: unknown key standard"],
    ),
    "preprocessing missing": (values(PREPROCESSING, mean=None), ["preprocessing.json: missing mean"]),
    "preprocessing aspect": (values(PREPROCESSING, aspect="strech"), ["aspect is 'strech'", "did you mean 'stretch'?"]),
    "preprocessing size": (values(PREPROCESSING, image_size=64), ["image_size is 64; expected 32"]),
    "preprocessing std": (values(PREPROCESSING, std=[1, 0, 1]), ["std is [1, 0, 1]; expected three numbers above 0"]),
    "preprocessing mean": (values(PREPROCESSING, mean=[0.5]), ["mean is [0.5]; expected a list of 3 x"]),
    "preprocessing template": (
        values(PREPROCESSING, prompt_template="{question}"),
        ["prompt_template is '{question}'; expected {image} and {question} once each"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_gets_one_message(name: str, folder: Path, tmp_path: Path) -> None:
    damage, parts = BAD[name]
    damage(folder)
    work = workspace(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load(model_config(folder), work)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert list(work.out.iterdir()) == []


def test_a_folder_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*modle\n.*did you mean 'model'"):
        load(model_config(folder.with_name("modle")), workspace(tmp_path))
    with pytest.raises(CheckpointError, match="is a file; expected a folder"):
        load(model_config(folder / "config.json"), workspace(tmp_path))


def test_a_pickle_is_never_run(folder: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    import pickle

    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="is a Python pickle"):
        load(model_config(folder), workspace(tmp_path))
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="is a zip archive"):
        load(model_config(folder), workspace(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_module_comes_with_the_weights_in_its_folder(tmp_path: Path) -> None:
    """Its names are its state_dict's; integers come through too."""
    state = torch.nn.BatchNorm2d(3).state_dict()
    (tmp_path / "weights").mkdir()
    save_file(state, tmp_path / "weights" / "model.safetensors")
    keys = {
        "module": {"_target_": "torch.nn.BatchNorm2d", "num_features": 3},
        "inputs": {"input": {"shape": [1, 3, 4, 4], "dtype": "float32"}},
        "outputs": ["output"],
    }
    checkpoint = load(model_config(tmp_path / "weights", **keys), workspace(tmp_path / "1"))
    assert load_file(checkpoint.weights).keys() == state.keys()
    assert checkpoint.config().build().num_features == 3
    again = load(model_config(checkpoint.path), workspace(tmp_path / "2"))
    for file in checkpoint.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes()
    keys["module"]["num_features"] = 4
    with pytest.raises(CheckpointError, match=r"the tensors of torch.nn.BatchNorm2d; 4 of another shape"):
        load(model_config(tmp_path / "weights", **keys), workspace(tmp_path / "3"))
    with pytest.raises(CheckpointError, match=r"model.module has no _target_; found target"):
        load(model_config(tmp_path, module={"target": "torch.nn.Linear"}), workspace(tmp_path / "4"))
