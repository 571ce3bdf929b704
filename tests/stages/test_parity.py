"""The shipped files against torch with the same quantized weights, on both runtimes, from checkpoints in the layouts
that people have; and that validate=parity sees what is wrong."""

import dataclasses
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import onnx
import pytest
import torch

from pipelines.errors import StageError
from stages.artifacts import DeviceModel, QuantizedModel
from stages.models.qwen2 import MaskedContext
from stages.runtimes.coreml_reference import CoreMLSession
from stages.runtimes.generate import generate, image_rows, prefill
from stages.runtimes.opening import open_session
from stages.runtimes.ort import OnnxSession
from stages.tensorfile import TensorReader
from tests.rounded import edited
from tests.tiny import DEVICES, Shipped, tiny_checkpoint

MODELS = {"fastvlm": ("apple", True), "qwen2": ("qwen2", False)}  # layout, tied embeddings
LONG = 1536


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Callable[..., Shipped]:
    """A model of MODELS, quantized in one of three ways, and probed."""

    @cache
    def checkpoint(name: str):
        layout, tied = MODELS[name]
        return tiny_checkpoint(tmp_path_factory.mktemp(name), layout, tied)

    @cache
    def make(name: str, kind: str = "int4") -> Shipped:
        return Shipped.of(checkpoint(name), tmp_path_factory.mktemp(kind), kind)

    return make


def passed(metrics: dict[str, Any]) -> dict[str, bool]:
    return {gate["metric"]: gate["passed"] for gate in metrics["gates"]}


@pytest.mark.parametrize("runtime", DEVICES)
@pytest.mark.parametrize("kind", ["int4", pytest.param("int8", marks=pytest.mark.slow), "none"])
@pytest.mark.parametrize("name", MODELS)
def test_the_runtime_chooses_what_torch_chooses(name, kind, runtime, shipped, tmp_path):
    made = shipped(name, kind)
    metrics = made.metrics(runtime, made.device_model(runtime), tmp_path / "validate")
    parity = metrics["parity"]
    assert all(passed(metrics).values()) and {"parity.top1", "parity.error"} <= passed(metrics).keys()
    assert parity["tokens"] >= 512 and parity["top1"] >= 0.995
    bound = 5e-6 if runtime == "onnxruntime" else 5e-3
    assert parity["error"] <= bound and parity.get("features_error", 0) <= bound
    assert ("features_error" in parity) == (name == "fastvlm")


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_level_4_rounds_the_products_inputs_and_nothing_else(name, shipped, tmp_path):
    """Random weights make narrow choices, which rounding changes; torch that rounds alike makes the same ones."""
    made = shipped(name)
    device_model = made.device_model("onnxruntime", accuracy_level=4)
    parity = made.metrics("onnxruntime", device_model, tmp_path / "validate")["parity"]
    assert parity["top1"] >= 0.98 and parity["error"] <= 0.05
    session = OnnxSession(device_model)
    ids, rows = probed(made, session)
    found = session.step(ids, rows, 0, session.start())
    alike, plain = torch_logits(made.model, ids, rows, rounding=True), torch_logits(made.model, ids, rows)
    assert np.mean(found.argmax(1) == alike.argmax(1)) >= 0.99
    assert spread(found - alike) <= 0.6 * spread(found - plain)  # not 0: a last bit may decide how the next rounds


def probed(made: Shipped, session: Any) -> tuple[list[int], np.ndarray]:
    """The probe's tokens, and the runtime's own visual tokens for them."""
    values = TensorReader(made.probed.values)
    ids = values.array("ids").tolist()
    if "pixels" in values.entries:
        return ids, image_rows(session, ids, session.encode(values.array("pixels")))
    return ids, np.zeros((len(ids), session.description["hidden"]), np.float32)


def torch_logits(model: QuantizedModel, ids: list[int], rows: np.ndarray, rounding: bool = False) -> np.ndarray:
    """(N, V) of the dequantized model, all tokens at once. rounding: inputs of products in int8, in blocks of 32."""
    module, count = model.model(), len(ids)
    text = module.text
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: (rounded(inputs[0]),))
        for layer in text.modules()
        if rounding and isinstance(layer, torch.nn.Linear)
    ]
    context = MaskedContext(torch.arange(count), torch.ones(count, count).tril().bool(), text.config)
    tokens = torch.tensor([ids])
    with torch.no_grad():
        embedded = text.embed_tokens(tokens)
        if module.config.vision:
            embedded = module.embed(tokens, torch.from_numpy(rows)[None])
        hidden = text.hidden(embedded, context)[0]
        logits = text.head(rounded(hidden) if hooks else hidden).numpy()
    return logits


def rounded(x: torch.Tensor) -> torch.Tensor:
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale).round() * scale).flatten(-2)


def spread(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


@pytest.mark.parametrize("runtime", [*DEVICES, "coreml in float32"])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_single_tokens_and_the_whole_prompt_give_the_same(name, runtime, shipped):
    made = shipped(name)
    if runtime == "onnxruntime":
        sessions = {"whole": OnnxSession(made.device_model(runtime)), "chunks": OnnxSession(made.device_model(runtime))}
        sessions["chunks"].chunk = 48
    else:
        precision = "float32" if "float32" in runtime else "float16"
        widths = {"whole": 160, "chunks": 64}
        sessions = {
            key: CoreMLSession(made.device_model("coreml", prefill_chunk=width), precision=precision)
            for key, width in widths.items()
        }
    ids, rows = probed(made, sessions["whole"])
    ids, rows = ids[:150], rows[:150]  # the last chunk is not full
    results = {key: prefill(session, session.start(), ids, rows) for key, session in sessions.items()}
    session = sessions["whole"]
    state = session.start()
    results["single"] = np.concatenate(
        [session.step(ids[at : at + 1], rows[at : at + 1], at, state) for at in range(len(ids))]
    )
    expected = torch_logits(made.model, ids, rows)
    among, torchs = {"onnxruntime": (2e-5, 2e-5), "coreml": (4e-3, 4e-3)}.get(runtime, (2e-5, 4e-3))
    for key, found in results.items():
        assert np.abs(found - expected).max() <= torchs * np.abs(expected).max(), key
        assert np.abs(found - results["whole"]).max() <= among * np.abs(expected).max(), key


@pytest.mark.parametrize("runtime", DEVICES)
def test_a_thousand_tokens_do_not_drift(runtime, shipped):
    """Text of 1,400 tokens of which the last 1,000 are decoded one by one, in a context of 1,536."""
    made, count = shipped("fastvlm"), 1000
    session = open_session(made.device_model(runtime, context=LONG))
    prompt, rows = (part[: made.probed.prompt()] for part in probed(made, session))
    words = np.random.default_rng(5).integers(0, 256, 1400 - len(prompt))  # what it would write soon repeats itself
    ids = [*prompt, *words.tolist()]
    filled = np.zeros((len(ids), rows.shape[1]), np.float32)
    filled[: len(prompt)] = rows
    first, state = len(ids) - count, session.start()
    parts = [prefill(session, state, ids[:first], filled[:first])]
    parts += [session.step([ids[at]], filled[at : at + 1], at, state) for at in range(first, len(ids))]
    found, expected = np.concatenate(parts), torch_logits(made.model, ids, filled)
    errors = [spread(found[part] - expected[part]) / expected.std() for part in (slice(first), slice(-50, None))]
    assert errors[1] <= (5e-6 if runtime == "onnxruntime" else 5e-3) and errors[1] <= 2 * errors[0]
    assert np.mean(found[first:].argmax(1) == expected[first:].argmax(1)) >= 0.99


@pytest.mark.parametrize("runtime", DEVICES)
def test_what_it_writes_is_what_torch_would_choose(runtime, shipped):
    made = shipped("fastvlm")
    session = open_session(made.device_model(runtime))
    prompt, rows = (part[: made.probed.prompt()] for part in probed(made, session))
    places = np.array(prompt) == session.description["image_token_id"]
    answer = generate(session, prompt, rows[places], end_id=-1, max_new_tokens=64)
    filled = np.zeros((len(prompt) + 63, rows.shape[1]), np.float32)
    filled[: len(prompt)] = rows
    chosen = torch_logits(made.model, [*prompt, *answer[:-1]], filled)[len(prompt) - 1 :]
    margins = chosen.max(1) - chosen[np.arange(64), answer]
    assert (margins <= 5e-3 * chosen.std()).all()  # 0 but for two words that are as good


# What is wrong: (model, runtime) -> a device model with that mistake.


def other_weights(made: Shipped, runtime: str, path: Path) -> DeviceModel:
    """One projection's scales are half as large again."""
    return made.device_model(
        runtime,
        edited(made.model, path / "edited", "text.layers.1.mlp.down_proj.weight.scales", lambda scales: scales * 1.5),
    )


def other_head(made: Shipped, runtime: str, path: Path) -> DeviceModel:
    """The second half of the output head is a word off."""

    def shift(codes: np.ndarray) -> np.ndarray:
        rows = codes.reshape(576, -1)
        return np.concatenate([rows[:288], np.roll(rows[288:], 1, 0)]).ravel()

    return made.device_model(runtime, edited(made.model, path / "edited", "text.lm_head.weight.codes", shift))


def other_rows(made: Shipped, runtime: str, path: Path) -> DeviceModel:
    """The decoder takes the image token for a word."""
    shutil.copytree(made.model.path, path / "model")
    model = QuantizedModel(path / "model")
    config = dataclasses.replace(model.config(), image_token_id=500)
    model.write_json("config.json", config.to_dict())
    converted = made.device_model(runtime, model)
    converted.write_json("model.json", {**converted.description(), "image_token_id": 515})
    return converted


def other_mask(made: Shipped, runtime: str, path: Path) -> DeviceModel:
    """Core ML: no token sees itself. ONNX Runtime: tokens see 100 others."""
    shutil.copytree(made.device_model(runtime).path, path / "device")
    if runtime == "coreml":
        rewrite(path / "device/decoder.mlpackage", lambda operation: setattr(operation, "type", "greater_equal"))
        return DeviceModel(path / "device")
    file = path / "device/decoder.onnx"
    graph = onnx.load(file, load_external_data=False)
    for node in graph.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.attribute.append(onnx.helper.make_attribute("local_window_size", 100))
    onnx.save(graph, file)
    return DeviceModel(path / "device")


def rewrite(package: Path, change: Callable[[Any], None]) -> None:
    """Change each operation `greater` of a package."""
    (file,) = package.rglob("*.mlmodel")
    spec = coremltools.utils.load_spec(str(file))
    for function in spec.mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            if operation.type == "greater":
                change(operation)
    file.write_bytes(spec.SerializeToString())


MISTAKES = [
    (other_weights, "qwen2"),
    (other_mask, "qwen2"),
    (other_rows, "fastvlm"),
    (other_head, "qwen2"),
]


@pytest.mark.parametrize("runtime", DEVICES)
@pytest.mark.parametrize(("mistake", "name"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_a_mistake_fails_the_gates(mistake, name, runtime, shipped, tmp_path):
    made = shipped(name, "int4")
    metrics = made.metrics(runtime, mistake(made, runtime, tmp_path), tmp_path / "validate")
    assert not passed(metrics)["parity.top1"]
    assert metrics["parity"]["error"] > 0.03  # more than 10 times what the right one has


@pytest.mark.parametrize("runtime", DEVICES)
def test_an_encoder_of_other_weights_shows_in_its_features(runtime, shipped, tmp_path):
    made = shipped("fastvlm")
    model = edited(made.model, tmp_path / "edited", "projector.2.weight.scales", lambda scales: scales * 1.5)
    metrics = made.metrics(runtime, made.device_model(runtime, model), tmp_path / "validate")
    assert metrics["parity"]["features_error"] > 0.2


def test_a_context_that_the_prompt_fills_is_refused(shipped, tmp_path):
    made = shipped("fastvlm")
    prompt = made.probed.prompt()
    context = prompt + 2
    device_model = made.device_model("onnxruntime", context=context, prefill_chunk=16)
    with pytest.raises(
        StageError, match=f"prompt of {prompt} tokens leaves no room in the context of {context}"
    ) as error:
        made.metrics("onnxruntime", device_model, tmp_path / "validate")
    assert "convert.context" in error.value.hint
