"""Predictions of the devices of conf/device: what is never faster, what an interval is, what is unknown."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ConfigError, StageError
from stages.devices.bytes import stored_bytes
from stages.devices.calibration import Estimate
from stages.devices.hardware import predictable
from stages.devices.latency import Latency
from stages.devices.latency_sources import predictor_of
from stages.devices.memory import peak_memory
from stages.devices.operators import graphs
from stages.devices.predictors import Prediction, prediction_of
from stages.devices.thermal import STEPS, heat_of
from stages.evaluation.gates import check_budgets
from stages.evaluation.names import PREDICTED
from stages.evaluation.predicted import predicted
from stages.models.vlm import ModelConfig, ModuleConfig
from stages.schema import DeviceProfile, Prepacking, Runtime, Thermal, Unpacking
from stages.schema.search import LatencySource
from tests.conf import CONF, group
from tests.rounded import rounded
from tests.toy import toy_checkpoint, toy_config

CONTEXT = 320
KINDS = [kind for kind in LatencySource if kind not in (LatencySource.host, LatencySource.none)]
DEVICES = sorted(path.stem for path in (CONF / "device").glob("*.yaml"))
KNOWN = [name for name in DEVICES if predictable(group("device", name))]
NOTHING = dict.fromkeys(("int8", "float16", "float32"))


def device(name: str = "pixel-8", **hardware: Any) -> DeviceProfile:
    return group("device", name, hardware=hardware)


def predict(profile: DeviceProfile, model: ModelConfig, sizes: Any = None, context: int = CONTEXT) -> Prediction:
    found = prediction_of(model, sizes or {}, profile, context=context, text_tokens=8)
    assert found is not None
    return found


def latency(profile: DeviceProfile, model: ModelConfig, sizes: Any = None, context: int = CONTEXT) -> Latency:
    predictor = predictor_of(KINDS[0], profile, context=context, text_tokens=8)
    assert predictor is not None
    return predictor.predict(model, sizes or {})


def large_config() -> ModelConfig:
    """Of about 0.3 x 10^9 parameters."""
    model = toy_config(layers=16)
    assert model.vision and model.text
    vision = replace(model.vision, image_size=128, widths=(192, 384), depths=(6, 6), strides=((1, 1), (2, 2)))
    text = replace(model.text, hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_key_value_heads=4)
    return replace(model, vision=vision, text=replace(text, head_dim=64, vocab_size=32000))


@pytest.mark.parametrize("name", KNOWN)
def test_an_interval_contains_its_value_and_first_tokens_take_longest(name: str) -> None:
    found = predict(group("device", name), large_config(), context=4096)
    for estimate in (*found.metrics.values(), *found.by_context.values()):
        assert 0 < estimate.low <= estimate.value <= estimate.high
        assert estimate.low < estimate.high
    metrics = found.metrics
    assert set(metrics) <= set(PREDICTED)
    assert metrics["first_token_ms"].value == metrics["encode_ms"].value + metrics["prefill_ms"].value
    assert metrics["tokens_per_s"].value * metrics["token_ms"].value == pytest.approx(1e3)
    assert metrics["prefill_ms"].value >= metrics["token_ms"].value * 0.5  # a prompt reads all weights too
    told = {"energy": "energy_j", "sustained": "tokens_per_s_5min"}
    known = {name for name, metric in told.items() if metric in metrics}
    assert set(found.basis) == {"encode", "prefill", "decode", "memory", *known}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_longer_context_is_never_faster(name: str, bits: int) -> None:
    model = large_config()
    sizes = {key: value // (32 // bits) for key, value in stored_bytes(model, group("quantize", "none")).items()}
    found = predict(group("device", name), model, sizes, context=8192)
    assert list(found.by_context) == [512, 1024, 2048, 4096, 8192]
    speeds = [estimate.value for estimate in found.by_context.values()]
    assert all(later < earlier for earlier, later in itertools.pairwise(speeds))
    assert found.by_context[8192] == found.metrics["tokens_per_s"]


@pytest.mark.parametrize("name", ["galaxy-s24", "pixel-8", "iphone-15-pro", "jetson-orin-nano"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_more_bytes_are_never_faster(name: str, data: st.DataObject) -> None:
    model, profile = large_config(), group("device", name)
    sizes = stored_bytes(model, group("quantize", "int4"))
    share = data.draw(st.floats(0.2, 1.0))
    less = {key: int(size * share) for key, size in sizes.items()}
    whole, part = latency(profile, model, sizes), latency(profile, model, less)
    assert part.token_ms <= whole.token_ms
    assert part.prefill_ms <= whole.prefill_ms and part.encode_ms <= whole.encode_ms


@pytest.mark.parametrize("name", KNOWN)
@settings(max_examples=3, deadline=None)
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
    small, profile = replace(large, vision=vision, text=text), group("device", name)
    for quantized in (False, True):
        found, whole = (
            latency(profile, each, stored_bytes(each, group("quantize", "int8")) if quantized else {})
            for each in (small, large)
        )
        assert found.encode_ms <= whole.encode_ms and found.prefill_ms <= whole.prefill_ms
        assert found.token_ms <= whole.token_ms


def test_codes_are_read_as_stored_where_the_runtime_does() -> None:
    """ONNX Runtime's CPU kernels unpack float16; Core ML reads it as stored."""
    model = large_config()
    halves = stored_bytes(model, group("quantize", "none"))
    for name, faster in (("pixel-8", False), ("iphone-15-pro", True)):
        whole, packed = latency(device(name), model), latency(device(name), model, halves)
        assert packed.token_ms < whole.token_ms if faster else packed.token_ms == whole.token_ms


def test_more_bandwidth_and_higher_peaks_are_faster() -> None:
    large = large_config()
    assert large.vision
    wide = replace(large, vision=replace(large.vision, image_size=512))  # bound by its arithmetic
    for name in ("pixel-8", "iphone-15-pro", "jetson-orin-nano"):
        profile = device(name)
        assert profile.hardware.bandwidth_gb_s
        broad = device(name, bandwidth_gb_s=2 * profile.hardware.bandwidth_gb_s)
        assert latency(broad, large).token_ms < latency(profile, large).token_ms
        unit = {"pixel-8": "cpu", "iphone-15-pro": "npu", "jetson-orin-nano": "gpu"}[name]
        peaks = {kind: value and 2 * value for kind, value in vars(getattr(profile.hardware.peaks, unit)).items()}
        quick = device(name, peaks={unit: peaks})
        found, before = (latency(each, wide, context=4608) for each in (quick, profile))
        assert found.encode_ms < before.encode_ms and found.prefill_ms < before.prefill_ms


def test_a_chip_that_was_measured_has_the_narrower_interval() -> None:
    def width(estimate: Estimate) -> float:
        return estimate.high / estimate.low

    measured = predict(device("galaxy-s25"), large_config())
    unknown = predict(device("galaxy-s25", soc=None, htp_version=80), large_config())
    for name in ("encode_ms", "token_ms", "prefill_ms"):
        assert width(measured.metrics[name]) < width(unknown.metrics[name])
    assert "this chip" in measured.basis["decode"] and "Samsung Galaxy S25" in measured.basis["encode"]
    assert "other chips" in unknown.basis["encode"] and "Snapdragons" in unknown.basis["decode"]


def test_the_published_figure_of_core_ml_is_met() -> None:
    """Its own anchor: Qwen2 0.5B in float16 on an M4 Pro decodes 113 tokens/s, and takes 3,901 of a prompt."""
    model = toy_config(layers=24, tied=True)
    assert model.text
    text = replace(
        model.text, vocab_size=151936, hidden_size=896, intermediate_size=4864, num_attention_heads=14, head_dim=64
    )
    qwen = ModelConfig(None, replace(text, num_key_value_heads=2))
    sizes = stored_bytes(qwen, group("quantize", "none"))
    profile = group("device", "mac-mini-m4-pro")
    found = prediction_of(qwen, sizes, profile, context=256, text_tokens=200)
    assert found is not None
    assert found.metrics["tokens_per_s"].value == pytest.approx(113, rel=0.03)
    assert 200 / found.metrics["prefill_ms"].value * 1e3 == pytest.approx(3901, rel=0.1)


def test_a_neural_engine_attains_what_apple_publishes() -> None:
    """FastViT MA36 takes 4.5 ms on an A14 and has 7.8 x 10^9 multiplications: a third of the peak, and 0.4 ms."""
    large = large_config()
    assert large.vision
    tower = replace(large, vision=replace(large.vision, image_size=512))
    flops = sum(operator.flops for operator in graphs(tower, context=4608, text_tokens=8)["encoder"])
    found = predict(group("device", "iphone-12"), tower, context=4608).metrics["encode_ms"]
    published = 2 * 7.8e9 / (4.5e-3 - 0.4e-3)
    assert flops / (found.value * 1e-3 - 0.4e-3) == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_is_predicted_or_says_why_not(name: str) -> None:
    profile = group("device", name)
    if name in KNOWN:
        assert latency(profile, toy_config()).token_ms > 0
        return
    found = predict(profile, toy_config())
    assert set(found.metrics) == {"peak_memory_mib"} == {f"peak_{each}_mib" for each in found.basis}
    assert not found.by_context
    with pytest.raises(ConfigError, match=f"{name}: no latency can be predicted") as error:
        predictor_of(KINDS[0], profile, context=CONTEXT)
    assert "search.latency=none" in error.value.hint and f"device.{name}.hardware." in error.value.hint


def test_most_devices_are_predicted() -> None:
    assert len(KNOWN) >= len(DEVICES) - 2 and {"galaxy-s24", "iphone-12", "pixel-8", "raspberry-pi-5"} <= set(KNOWN)


def test_of_unknown_hardware_no_speed_is_predicted() -> None:
    peaks = {unit: NOTHING for unit in ("npu", "gpu", "cpu")}
    for profile in (device(bandwidth_gb_s=None), device(peaks=peaks), device("iphone-12", peaks=peaks)):
        assert set(predict(profile, toy_config()).metrics) == {"peak_memory_mib"}
        with pytest.raises(ConfigError, match="no latency can be predicted without hardware"):
            predictor_of(KINDS[0], profile, context=CONTEXT)


def test_an_engine_whose_speed_is_unknown_is_bounded_by_the_gpu() -> None:
    profile = device("iphone-15-pro", peaks={"npu": NOTHING})
    found = predict(profile, large_config())
    for name in ("encode_ms", "prefill_ms"):
        assert found.metrics[name].high > 10 * found.metrics[name].low
    assert "Neural Engine's speed is not known" in found.basis["encode"]


@pytest.mark.parametrize(("units", "which"), [(["cpu"], "the CPU"), (["gpu", "cpu"], "the GPU")])
def test_an_engine_that_is_not_used_is_not_told_of(units: list[str], which: str) -> None:
    for peaks in ({}, {"npu": NOTHING}):
        profile = group("device", "iphone-16", compute_units=units, hardware={"peaks": peaks})
        found = predict(profile, large_config())
        assert "Neural Engine" not in found.basis["encode"] and which in found.basis["encode"]
        assert found.metrics["encode_ms"].high < 10 * found.metrics["encode_ms"].low


def test_a_later_phone_whose_engine_is_not_announced_is_no_slower() -> None:
    before, after = (predict(group("device", f"iphone-{name}"), large_config()) for name in ("16-pro", "17-pro"))
    for name in ("encode_ms", "prefill_ms", "token_ms"):
        assert after.metrics[name].value <= before.metrics[name].value
    assert "not announced" in after.basis["encode"] and "not announced" not in before.basis["encode"]


@pytest.mark.parametrize("soc", ["Samsung Galaxy S25", "My Board"])
def test_a_hexagons_version_need_not_be_known(soc: str) -> None:
    """A chip that was measured has its own; of another nothing is known, and its interval is that of such chips."""
    known, unknown = (
        predict(device("galaxy-s25", soc=soc, htp_version=version), large_config()) for version in (79, None)
    )
    if soc == "My Board":
        assert "version here is not known" in unknown.basis["encode"]
        assert unknown.metrics["encode_ms"].value > 0
    else:
        assert unknown == known


def test_an_interval_that_no_errors_stand_behind_is_called_judged() -> None:
    found = predict(device("galaxy-s25"), large_config())
    assert found.to_json()["peak_memory_mib"]["judged"] is True and "judged" in found.basis["memory"]
    assert "judged" not in found.to_json()["encode_ms"] and "judged" not in found.basis["encode"]
    for name in ("iphone-15-pro", "pixel-8", "raspberry-pi-5"):
        other = predict(device(name), large_config())
        assert {key for key, each in other.to_json().items() if "judged" not in each} == set()
        assert all("judged" in other.basis[key] for key in ("encode", "prefill", "decode", "memory"))
    (exact, judged) = (Estimate(2.0, 1.0, 4.0, judged) for judged in (False, True))
    assert exact.plus(judged).judged and judged.times(2).judged and judged.inverse().judged and exact.by(judged).judged
    assert not exact.plus(exact).judged
    assert exact.by(judged) == Estimate(4.0, 1.0, 16.0, True)


def test_no_latency_is_predicted_where_none_is_asked_for() -> None:
    assert predictor_of(LatencySource.none, group("device", "galaxy-s24"), context=CONTEXT) is None


@pytest.mark.parametrize(
    ("hardware", "named"),
    [
        ({"bandwidth_gb_s": 0}, "bandwidth_gb_s"),
        ({"peaks": {"cpu": {"float32": -1}}}, "peaks.cpu.float32"),
        ({"operator_us": -0.1}, "operator_us"),
    ],
)
def test_a_speed_of_nothing_is_refused(hardware: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"hardware.{named} is"):
        predictor_of(KINDS[0], device(**hardware), context=CONTEXT)


def test_a_users_module_is_not_predicted() -> None:
    module = ModelConfig(None, None, None, ModuleConfig("torch.nn.Linear", {}, {}, []))
    assert prediction_of(module, {}, device(), context=CONTEXT, text_tokens=8) is None
    with pytest.raises(StageError, match="a user's module"):
        latency(device(), module)


def test_a_text_model_has_no_encoder() -> None:
    found = predict(device(), ModelConfig(None, toy_config().text))
    assert "encode_ms" not in found.metrics and "encode" not in found.basis
    assert found.metrics["first_token_ms"] == found.metrics["prefill_ms"]


def test_memory_follows_how_weights_are_loaded() -> None:
    """As measured: the default takes most, prepacking off least; more context takes more."""
    model, profile = large_config(), device()
    sizes = stored_bytes(model, group("quantize", "int4"))

    def mib(packing: Prepacking, context: int = 512) -> float:
        found = peak_memory(model, sizes, replace(profile, prepacking=packing), context=context, text_tokens=8)
        return found.value

    assert mib(Prepacking.off) < mib(Prepacking.saved) < mib(Prepacking.load)
    cached = 2 * 16 * 4 * 64 * 4 * 512 / 2**20  # keys and values of 16 layers with 4 heads of 64, float32
    assert mib(Prepacking.load, 1024) - mib(Prepacking.load, 512) >= cached
    assert profile.runtime is Runtime.onnxruntime


def test_memory_is_that_of_float_weights_where_they_are_unpacked_at_load() -> None:
    model, profile = large_config(), device()
    sizes = stored_bytes(model, group("quantize", "int4"))

    def mib(unpacked: Unpacking, sizes: dict[str, int]) -> float:
        found = prediction_of(model, sizes, replace(profile, unpack_weights=unpacked), context=512, text_tokens=8)
        assert found is not None
        return found.metrics["peak_memory_mib"].value

    assert mib(Unpacking.never, sizes) < 0.8 * mib(Unpacking.folded, sizes)
    assert mib(Unpacking.folded, sizes) <= mib(Unpacking.never, {})


def test_heat_slows_a_device_only_when_it_is_hot() -> None:
    cool, hot = Thermal(180, 4.0, 5.0, None, None), Thermal(180, 12.0, 2.0, None, None)
    assert heat_of(cool) == heat_of(replace(cool, steps=[1.0, 0.5]))
    whole, slowed = heat_of(cool), heat_of(hot)
    assert whole and slowed
    assert all(each == Estimate(1.0, 1.0, 1.0) for each in whole.speeds.values())
    speeds = {minute: each.value for minute, each in slowed.speeds.items()}
    assert speeds[1] == 1.0 > speeds[5] >= speeds[15] > min(STEPS)
    assert 12.0 * speeds[15] ** 2 == pytest.approx(2.0, rel=0.35)  # about what it can give off
    assert all(0 < each.low <= each.value <= each.high <= 1 and each.judged for each in slowed.speeds.values())
    heavy = heat_of(replace(hot, mass_g=720))
    assert heavy and heavy.speeds[5].value > speeds[5]
    for missing in ("mass_g", "peak_w", "sustained_w"):
        assert heat_of(replace(hot, **{missing: None})) is None
    assert heat_of(replace(cool, mass_g=None)) == whole  # nothing heats up


def test_a_device_slows_down_as_it_was_measured_to() -> None:
    """An iphone-17-pro from 33 to 22 tokens/s in ten minutes, 10 % after 93 s and 25 % after 390."""
    thermal = group("device", "iphone-17-pro").thermal
    found = heat_of(thermal)
    assert found and "measured" in found.basis
    assert 0.9 < found.speeds[1].value < 1
    assert 0.75 < found.speeds[5].value < 0.9
    assert found.speeds[15].value == pytest.approx(22 / 33, rel=0.01)
    assert found.speeds[15].low < 0.6 and found.speeds[15].high == pytest.approx(0.9, abs=0.01)
    assert heat_of(replace(thermal, mass_g=None)) == found
    at_once = [replace(thermal.slowing[0], seconds=1.0, share=1.0)] if thermal.slowing else None
    steady = heat_of(replace(thermal, slowing=at_once))
    assert steady and [each.value for each in steady.speeds.values()] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["iphone-17-pro", "galaxy-s25", "raspberry-pi-5", "jetson-orin-nano"])
def test_of_some_devices_it_is_known_how_long_their_speed_lasts(name: str) -> None:
    found = predict(group("device", name), large_config())
    lasting = [found.metrics[f"tokens_per_s_{minute}min"].value for minute in (1, 5, 15)]
    assert found.metrics["tokens_per_s"].value >= lasting[0] >= lasting[1] >= lasting[2] > 0
    assert "sustained" in found.basis


def test_energy_and_sustained_speed_are_told_where_heat_is_known() -> None:
    bare = predict(device(), large_config())
    assert "energy_j" not in bare.metrics and "tokens_per_s_5min" not in bare.metrics
    profile = replace(device(), thermal=Thermal(180, 12.0, 2.0, None, None))
    metrics = predict(profile, large_config()).metrics
    seconds = (metrics["first_token_ms"].value + 15 * metrics["token_ms"].value) / 1e3
    assert metrics["energy_j"].value == pytest.approx(12.0 * seconds)
    assert metrics["tokens_per_s_15min"].value < metrics["tokens_per_s_1min"].value == metrics["tokens_per_s"].value


def test_what_validate_predicts_is_of_the_stored_weights(tmp_path: Path) -> None:
    model = rounded(toy_checkpoint(tmp_path / "checkpoint"), tmp_path / "quantized")
    found = predicted(model, {"context": CONTEXT}, device())
    sizes = {name: model.store().format(name).bytes for name in model.store().names()}
    expected = prediction_of(model.config(), sizes, device(), context=CONTEXT, text_tokens=16)
    assert expected is not None
    assert found["predicted"] == expected.to_json() and found["basis"] == expected.basis
    assert set(found["predicted"]["token_ms"]) == {"value", "low", "high", "judged"}
    assert found["by_context"][str(CONTEXT)] == found["predicted"]["tokens_per_s"]
    memory = {"peak_memory_mib": found["predicted"]["peak_memory_mib"]}
    assert predicted(model, {"context": CONTEXT}, device(bandwidth_gb_s=None)) == {
        "predicted": memory,
        "by_context": {},
        "basis": {"memory": found["basis"]["memory"]},
    }
    assert predicted(model, {"context": 34}, device())["predicted"]["token_ms"]["value"] > 0  # room for two tokens


def test_a_budget_of_memory_holds_where_no_speed_is_known(tmp_path: Path) -> None:
    profile = group("device", "web-wasm", budgets={"size_mib": None, "memory_mib": 1})
    model = rounded(toy_checkpoint(tmp_path / "checkpoint"), tmp_path / "quantized")
    found = predicted(model, {"context": CONTEXT}, profile)
    (gate,) = check_budgets(found, profile.budgets, group("validate", "default").predictions)
    assert gate["predicted"] and not gate["passed"] and gate["value"] == found["predicted"]["peak_memory_mib"]["high"]


@pytest.mark.slow
def test_the_host_is_measured_once_and_ranks_as_predictions_do() -> None:
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
    other = predictor_of(KINDS[0], device(), context=640)
    assert host and other
    measured = [host.predict(shape, {}) for shape in shapes]
    for part in ("encode_ms", "prefill_ms", "token_ms"):
        found = [getattr(each, part) for each in measured]
        expected = [getattr(other.predict(shape, {}), part) for shape in shapes]
        assert 0 < found[0] < found[1] < found[2] and expected == sorted(expected)
    assert [host.predict(shape, {}) for shape in shapes] == measured


def test_the_host_measures_a_text_model() -> None:
    host = predictor_of(LatencySource.host, device(), context=CONTEXT)
    assert host
    found = host.predict(ModelConfig(None, toy_config().text), {})
    assert found.encode_ms == 0 and found.token_ms > 0 and found.first_token_ms == found.prefill_ms
