"""Predicted latencies: units, bounds by hand, and that less of a model is never slower."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError, StageError
from stages.devices.bytes import stored_bytes
from stages.devices.latency import Latency
from stages.devices.operators import graphs, parameter_shapes
from stages.devices.predictors import predictor_of
from stages.devices.roofline import ATTAINED, OPERATOR_US, Roofline
from stages.evaluation.predicted import predicted
from stages.models.vlm import ModelConfig, ModuleConfig
from stages.schema import DeviceProfile
from stages.schema.search import LatencySource
from tests.conf import CONF, group
from tests.rounded import rounded
from tests.toy import toy_checkpoint, toy_config

CONTEXT = 64
DEVICES = sorted(path.stem for path in (CONF / "device").glob("*.yaml"))
KNOWN = [name for name in DEVICES if group("device", name).hardware.gflops]


def device(name: str = "pixel-8", **hardware: Any) -> DeviceProfile:
    return group("device", name, hardware=hardware)


def predict(profile: DeviceProfile, model: ModelConfig, sizes: Any = None) -> Latency:
    return Roofline(profile, context=CONTEXT, text_tokens=8).predict(model, sizes or {})


def test_a_device_bound_by_memory_takes_bytes_over_bandwidth() -> None:
    slow = device(bandwidth_gb_s=1.0, gflops=1e9, operator_us=0.0)
    operators = graphs(toy_config(), context=CONTEXT, text_tokens=8)["decode"]
    elements = 2 * (64 * 64 + 64 + 2 * (64 * 32 + 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64 + 288 * 64
    moved = 4 * elements + sum(operator.activation_bytes for operator in operators)
    assert predict(slow, toy_config()).token_ms == pytest.approx(moved / (1e9 * ATTAINED) * 1e3)


def test_a_device_bound_by_arithmetic_takes_operations_over_their_peak() -> None:
    slow = device(bandwidth_gb_s=1e9, gflops=1.0, operator_us=0.0)
    operators = graphs(toy_config(), context=CONTEXT, text_tokens=8)
    found = predict(slow, toy_config())
    for name, value in (("encoder", found.encode_ms), ("prefill", found.prefill_ms), ("decode", found.token_ms)):
        flops = sum(operator.flops for operator in operators[name])
        assert value == pytest.approx(flops / (1e9 * ATTAINED) * 1e3, rel=1e-3)
    assert found.first_token_ms == found.encode_ms + found.prefill_ms


def test_each_operator_costs_its_microseconds() -> None:
    few, many = (predict(device(operator_us=cost), toy_config()) for cost in (0.0, 10.0))
    count = len(graphs(toy_config(), context=CONTEXT, text_tokens=8)["decode"])
    assert many.token_ms - few.token_ms == pytest.approx(count * 10.0 / 1e3)
    assert predict(device(operator_us=None), toy_config()) == predict(device(operator_us=OPERATOR_US), toy_config())


def test_codes_are_read_as_stored_where_the_runtime_does() -> None:
    """ONNX Runtime unpacks convolutions when it loads them; Core ML does not."""
    model = toy_config()
    sizes = stored_bytes(model, group("quantize", "int4"))
    convolutions = {name: sizes[name] for name, shape in parameter_shapes(model).items() if len(shape) == 4}
    for name in ("pixel-8", "iphone-15-pro"):
        slow = device(name, bandwidth_gb_s=1.0, gflops=1e9)
        whole, packed = predict(slow, model), predict(slow, model, sizes)
        assert packed.token_ms < whole.token_ms
        unpacked = predict(slow, model, convolutions).encode_ms
        assert unpacked == whole.encode_ms if name == "pixel-8" else unpacked < whole.encode_ms


@pytest.mark.parametrize("name", KNOWN)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_smaller_model_is_never_slower(name: str, data: st.DataObject) -> None:
    large = toy_config(layers=3)
    assert large.vision and large.text
    vision = replace(
        large.vision,
        depths=tuple(data.draw(st.integers(1, depth)) for depth in (1, 1)),
        image_size=data.draw(st.sampled_from([16, 32])),
        mlp_ratio=data.draw(st.sampled_from([1, 2])),
        strides=((1, 1), data.draw(st.sampled_from([(2, 1), (2, 2)]))),
    )
    text = replace(
        large.text,
        num_hidden_layers=data.draw(st.integers(1, 3)),
        intermediate_size=data.draw(st.sampled_from([32, 64, 96])),
        num_attention_heads=data.draw(st.sampled_from([1, 2])),
        head_rank=data.draw(st.sampled_from([None, 8, 32])),
    )
    small = replace(large, vision=vision, text=text)
    profile = device(name, operator_us=data.draw(st.sampled_from([None, 0.0])))
    for sizes in ({}, None):
        found, whole = (
            predict(profile, each, stored_bytes(each, group("quantize", "int8")) if sizes is None else sizes)
            for each in (small, large)
        )
        assert found.encode_ms <= whole.encode_ms and found.prefill_ms <= whole.prefill_ms
        assert text.head_rank is not None or found.token_ms <= whole.token_ms  # two heads are one operator more


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_is_predicted_or_says_why_not(name: str) -> None:
    profile = group("device", name)
    if name in KNOWN:
        found = predictor_of(LatencySource.roofline, profile, context=CONTEXT)
        assert found and found.predict(toy_config(), {}).token_ms > 0
        return
    with pytest.raises(ConfigError, match=f"{name}: no latency can be predicted") as error:
        predictor_of(LatencySource.roofline, profile, context=CONTEXT)
    assert "search.latency=none" in error.value.hint and f"device.{name}.hardware." in error.value.hint


def test_no_latency_is_predicted_where_none_is_asked_for() -> None:
    assert predictor_of(LatencySource.none, group("device", "galaxy-s24"), context=CONTEXT) is None


@pytest.mark.parametrize("hardware", [{"bandwidth_gb_s": 0}, {"gflops": -1}, {"operator_us": -0.1}])
def test_a_speed_of_nothing_is_refused(hardware: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"hardware.{next(iter(hardware))} is"):
        Roofline(device(**hardware), context=CONTEXT)


def test_a_users_module_is_not_predicted() -> None:
    module = ModelConfig(None, None, None, ModuleConfig("torch.nn.Linear", {}, {}, []))
    with pytest.raises(StageError, match="a user's module"):
        predict(device(), module)


def test_what_validate_predicts_is_of_the_stored_weights(tmp_path: Path) -> None:
    model = rounded(toy_checkpoint(tmp_path / "checkpoint"), tmp_path / "quantized")
    found = predicted(model, {"context": CONTEXT}, device())
    sizes = {name: model.store().format(name).bytes for name in model.store().names()}
    expected = Roofline(device(), context=CONTEXT).predict(model.config(), sizes)
    assert found == {
        "token_ms": expected.token_ms,
        "first_token_ms": expected.first_token_ms,
        "encode_ms": expected.encode_ms,
    }
    assert predicted(model, {"context": CONTEXT}, group("device", "galaxy-s24")) == {}
    assert predicted(model, {"context": 34}, device())["token_ms"] > 0  # room for two tokens of text


def test_the_host_is_measured_once_and_ranks_as_the_roofline_does() -> None:
    """Three shapes, each several times the next."""
    base = toy_config()
    assert base.vision and base.text
    shapes = [
        replace(
            base,
            vision=replace(base.vision, image_size=32 * scale, widths=(32 * scale, 64 * scale)),
            text=replace(base.text, num_hidden_layers=2 * scale, intermediate_size=192 * scale),
        )
        for scale in (1, 2, 4)
    ]
    host = predictor_of(LatencySource.host, group("device", "galaxy-s24"), context=640)
    roofline = predictor_of(LatencySource.roofline, device(), context=640)
    assert host and roofline
    measured = [host.predict(shape, {}) for shape in shapes]
    for part in ("encode_ms", "prefill_ms", "token_ms"):
        found = [getattr(latency, part) for latency in measured]
        expected = [getattr(roofline.predict(shape, {}), part) for shape in shapes]
        assert 0 < found[0] < found[1] < found[2] and expected == sorted(expected)
    assert [host.predict(shape, {}) for shape in shapes] == measured


def test_the_host_measures_a_text_model() -> None:
    host = predictor_of(LatencySource.host, device(), context=CONTEXT)
    assert host
    found = host.predict(ModelConfig(None, toy_config().text), {})
    assert found.encode_ms == 0 and found.token_ms > 0 and found.first_token_ms == found.prefill_ms
