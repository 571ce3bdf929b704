"""onnxruntime-genai runs the decoder's folder as it is, and chooses the tokens that our own loop chooses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.artifacts import DeviceModel, QuantizedModel
from stages.lowering.onnx import lower_onnx
from stages.models.vlm import ModelConfig
from stages.runtimes.generate import generate
from stages.runtimes.ort import OnnxSession
from tests.rounded import rounded
from tests.toy import narrow_config, toy_checkpoint, toy_config

CONTEXT = 64
PROMPT = list(range(40, 60))


def folder(path: Path, *, vision: bool = True, config: ModelConfig | None = None, **options) -> DeviceModel:
    """A small decoder with its genai_config.json."""
    config = config or toy_config(tied=True)
    model = rounded(toy_checkpoint(path / "checkpoint", config=config), path / "quantized", bits=4)
    (path / "device").mkdir()
    settings = {"context": CONTEXT, "accuracy_level": 4, **options}
    chosen = config if vision else replace(config, vision=None, image_token_id=None)
    description = lower_onnx(chosen, QuantizedModel(path / "quantized").store(), path / "device", **settings)
    model = DeviceModel(path / "device")
    model.write_json("model.json", description)
    return model


def of_genai(model: DeviceModel, count: int) -> list[int]:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    loaded = genai.Model(str(model.path))
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(do_sample=False, max_length=CONTEXT)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(PROMPT)
    tokens: list[int] = []
    while len(tokens) < count and not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


@pytest.mark.parametrize("vision", [True, False], ids=["with a tower", "text alone"])
@pytest.mark.parametrize("format", ["onnx", "ort"])
def test_genai_generates_the_tokens_of_our_loop(tmp_path, vision, format):
    model = folder(tmp_path, vision=vision, format=format)
    end = json.loads((model.path / "genai_config.json").read_text())["model"]["eos_token_id"]
    expected = generate(OnnxSession(model), PROMPT, np.zeros((0, 64), np.float32), end_id=end, max_new_tokens=24)
    found = of_genai(model, 24)
    assert len(expected) > 4 and [token for token in found if token != end] == expected


@pytest.mark.parametrize("heads", [1, 3])
def test_genai_generates_from_a_narrow_model(tmp_path, heads):
    """Whose heads make another width together than hidden_size, and whose output head is two matrices."""
    model = folder(tmp_path, config=narrow_config(num_attention_heads=heads))
    end = json.loads((model.path / "genai_config.json").read_text())["model"]["eos_token_id"]
    expected = generate(OnnxSession(model), PROMPT, np.zeros((0, 64), np.float32), end_id=end, max_new_tokens=24)
    found = of_genai(model, 24)
    assert len(expected) > 4 and [token for token in found if token != end] == expected


def test_genai_config_says_what_the_decoder_is(tmp_path):
    model = folder(tmp_path, prepacking="off")
    config = json.loads((model.path / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    inputs = model.description()["functions"]["decoder"]["inputs"]
    names = {decoder["inputs"]["past_key_names"] % layer for layer in range(decoder["num_hidden_layers"])}
    assert names | {"input_ids", "attention_mask"} <= inputs.keys()
    assert {name for name, value in inputs.items() if value.get("optional")} == {"image_features", "logits_to_keep"}
    assert (model.path / decoder["filename"]).is_file()
    assert decoder["session_options"]["session.disable_prepacking"] == "1"
    assert config["model"]["context_length"] == config["search"]["max_length"] == CONTEXT
    assert config["model"]["eos_token_id"] == 257  # <|im_end|>, which preprocessing.json names
    assert config["search"]["past_present_share_buffer"] and not config["search"]["do_sample"]


def test_what_genai_could_not_feed_has_no_files_for_it(tmp_path):
    model = folder(tmp_path, optional_inputs=False)
    assert sorted(path.name for path in model.path.glob("*.json")) == ["model.json"]


def test_genai_reads_the_tokenizer(tmp_path):
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    from tests.toy import toy_tokenizer

    model = folder(tmp_path)
    toy_tokenizer().save(str(model.path / "tokenizer.json"))
    tokenizer = genai.Tokenizer(genai.Model(str(model.path)))
    text = "how many?<|im_end|>"
    assert list(tokenizer.encode(text)) == toy_tokenizer().encode(text).ids
