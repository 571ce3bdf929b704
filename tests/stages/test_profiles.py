"""The profiles of conf/device: complete, sourced, and possible; and a phone of one's own, which inherits from them."""

import re
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipelines.choices import every_device
from pipelines.compose import compose
from pipelines.config import check_devices
from pipelines.errors import ConfigError
from pipelines.project import Project
from pipelines.typed import build
from stages.checks import validation, weight_formats
from stages.devices.chips import CHIPS, chip_of
from stages.devices.hardware import check_numbers
from stages.lowering.limits import HEXAGON, coreml_system
from stages.lowering.socs import find_soc
from stages.quantizers.choices import check_choices
from stages.schema import DeviceProfile, Runtime
from tests.conf import group

ROOT = Path(__file__).parents[2]
DEVICES = every_device(Project(ROOT))
PHONE = """\
# @package device.{name}
defaults: [base/{base}@_here_, _self_]
name: {name}
title: My Phone
memory_gib: 12
sources: {{memory_gib: {{confidence: high, source: its box}}}}
"""
PROMISED = """iphone-12 iphone-13 iphone-14 iphone-15 iphone-15-pro iphone-16 iphone-16-pro iphone-17-pro
    ipad-air-m1 ipad-air-m2 ipad-pro-m4 macbook-air-m1 macbook-air-m2 macbook-air-m3 macbook-air-m4 mac-mini-m4-pro
    galaxy-s22 galaxy-s23 galaxy-s24 galaxy-s24-exynos galaxy-s25 galaxy-s26 pixel-8 pixel-9 vivo-x100
    raspberry-pi-5 jetson-orin-nano web-wasm web-webgpu"""


def profiles(names: list[str], *folders: Path) -> dict[str, DeviceProfile]:
    """As the plan has them: composed by Hydra, checked, typed."""
    project = Project(ROOT, folders)
    values, _ = compose(project, [f"device=[{','.join(names)}]"])
    checked = check_devices(project, values["device"], DeviceProfile, [])
    return {name: build(profile, DeviceProfile) for name, profile in checked.items()}


@pytest.fixture(scope="module")
def every() -> dict[str, DeviceProfile]:
    return profiles(DEVICES)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, every: dict[str, DeviceProfile]) -> DeviceProfile:
    return every[request.param]


def numbers(device: DeviceProfile) -> dict[str, Any]:
    """What needs a source, by its dotted key."""

    def walk(value: Any, key: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {name: found for each in value for name, found in walk(value[each], f"{key}.{each}").items()}
        return {} if value is None or isinstance(value, str) else {key: value}

    hardware, thermal = (walk(asdict(part), name) for part, name in _parts(device))
    return {**walk(device.memory_gib, "memory_gib"), **hardware, **thermal}


def _parts(device: DeviceProfile) -> list[tuple[Any, str]]:
    return [(device.hardware, "hardware"), (device.thermal, "thermal")]


def test_there_is_a_profile_of_each_class_of_device() -> None:
    assert set(PROMISED.split()) <= set(DEVICES)


def test_each_number_has_a_source_and_nothing_else_has(device: DeviceProfile) -> None:
    assert set(device.sources) == set(numbers(device))
    assert all(len(each.source) > 10 for each in device.sources.values())


def test_what_is_derived_follows_from_its_source(device: DeviceProfile) -> None:
    """A bandwidth is transfers by width, a peak cores or lanes by clock by operations a cycle."""
    checked = {
        key: (numbers(device)[key], found)
        for key, source in device.sources.items()
        if (found := derived(key, source.source)) is not None
    }
    assert {key: found for key, (value, found) in checked.items() if value != pytest.approx(found, rel=0.01)} == {}
    if device.chip not in ("wasm32", "WebGPU"):
        assert "hardware.peaks.cpu.float32" in checked


def derived(key: str, source: str) -> float | None:
    """The number that a source's words come to; None where there are none that can be computed with."""
    if bus := re.search(r"(?:-(\d+)|at (\d+) MHz)(?: \([^)]*\))? on (\d+) bits", source):
        transfers = float(bus[1] or 2 * int(bus[2]))
        return transfers * int(bus[3]) / 8 / 1e3
    if lanes := re.search(r"(\d+) (?:lanes|CUDA cores) x 2 at ([\d.]+) GHz", source):
        return int(lanes[1]) * 2 * float(lanes[2])
    if share := re.search(r"(\d+) of the (\d+) cores for which Apple announced ([\d.]+) teraflops", source):
        return int(share[1]) / int(share[2]) * float(share[3]) * 1e3
    if key != "hardware.peaks.cpu.float32":
        return None
    total = 0.0
    *products, _ = re.split(r"(?<= x \d\d)", source)
    for product in products:  # such as "a Cortex-X4 at 3.3 GHz x 32" and ", 2 A715 and 2 A710 at 2.8 x 16"
        cores, _, a_cycle = product.rpartition(" x ")
        waiting = 0
        for count, clock in re.findall(
            r"\b(a|\d+) (?:Oryon cores|cores|Cortex-\w+|A\d\w+|(?=at))(?: ?at ([\d.]+))?", cores
        ):
            waiting += 1 if count == "a" else int(count)
            if clock:
                total += waiting * float(clock) * int(a_cycle)
                waiting = 0
    return total


def test_the_numbers_are_possible(device: DeviceProfile) -> None:
    hardware, thermal = device.hardware, device.thermal
    assert hardware.bandwidth_gb_s is None or 5 <= hardware.bandwidth_gb_s <= 1000
    assert device.memory_gib is None or 2 <= device.memory_gib <= 64
    assert thermal.mass_g is None or 40 <= thermal.mass_g <= 3000
    assert thermal.peak_w is None or 2 <= thermal.peak_w <= 200
    if thermal.sustained_w is not None:
        assert thermal.peak_w is not None and thermal.sustained_w <= thermal.peak_w
    check_numbers(device)
    if device.memory_gib is not None and device.budgets.size_mib is not None:
        assert device.budgets.size_mib <= device.memory_gib * 1024 / 2


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"memory_gib": 0}, "memory_gib is 0"),
        ({"hardware": {"bandwidth_gb_s": 0}}, "hardware.bandwidth_gb_s is 0"),
        ({"hardware": {"peaks": {"gpu": {"int8": -1}}}}, "hardware.peaks.gpu.int8 is -1"),
        ({"hardware": {"operator_us": -0.1}}, "hardware.operator_us is -0.1"),
        ({"hardware": {"htp_version": -79}}, "hardware.htp_version is -79"),
        ({"thermal": {"mass_g": 0}}, "thermal.mass_g is 0"),
        ({"thermal": {"peak_w": -5}}, "thermal.peak_w is -5"),
        ({"thermal": {"sustained_w": 0}}, "thermal.sustained_w is 0"),
        ({"thermal": {"steps": []}}, r"thermal.steps is \[\]"),
        ({"thermal": {"steps": [1.0, -1.0]}}, "thermal.steps is"),
        ({"thermal": {"steps": [0.9, 0.8]}}, "thermal.steps is"),
        ({"thermal": {"steps": [1.0, 1.0]}}, "thermal.steps is"),
        ({"thermal": {"slowing": []}}, r"thermal.slowing is \[\]"),
        ({"thermal": {"slowing": [{"seconds": 0, "share": 0.9}]}}, "thermal.slowing is"),
        ({"thermal": {"slowing": [{"seconds": 60, "share": 1.1}]}}, "thermal.slowing is"),
        (
            {"thermal": {"slowing": [{"seconds": 60, "share": 0.5}, {"seconds": 90, "share": 0.6}]}},
            "thermal.slowing is",
        ),
        (
            {"thermal": {"slowing": [{"seconds": 60, "share": 0.6}, {"seconds": 60, "share": 0.5}]}},
            "thermal.slowing is",
        ),
    ],
)
def test_a_number_that_cannot_be_is_refused_without_any_gate_on_it(part: dict[str, Any], named: str) -> None:
    config = group("validate", "default", gates=[])
    validation(config, group("device", "jetson-orin-nano"))
    with pytest.raises(ConfigError, match=f"device jetson-orin-nano: {named}"):
        validation(config, group("device", "jetson-orin-nano", **part))


@pytest.mark.parametrize("name", ["web-wasm", "web-webgpu"])
@pytest.mark.parametrize(("preset", "bits"), [("int4", 4), ("none", 0)])
def test_all_that_a_page_downloads_has_the_bits_of_the_preset(name: str, preset: str, bits: int) -> None:
    """A bundle of 4 bits is a third of the float16 one only where embeddings and convolutions have no more."""
    device = group("device", name)
    config = group("quantize", preset, **device.overrides["quantize"])
    weight_formats(config, device)
    assert {choice.bits for choice in check_choices(config)} - {config.spatial} == {bits} - {config.spatial}


@pytest.mark.parametrize("name", ["web-wasm", "web-webgpu"])
def test_a_page_is_given_no_graph_with_optional_inputs(name: str) -> None:
    device = group("device", name)
    assert not device.optional_inputs


@pytest.mark.parametrize(
    ("name", "form"), [("web-wasm", "folded"), ("web-webgpu", "dequantized"), ("pixel-8", "never")]
)
def test_weights_are_unpacked_where_the_runtime_reads_no_codes_well(name: str, form: str) -> None:
    assert group("device", name).unpack_weights.value == form


@pytest.mark.parametrize(
    ("name", "metric", "missing"),
    [
        ("web-wasm", "tokens_per_s", "hardware.bandwidth_gb_s and hardware.peaks.cpu.float32"),
        ("web-wasm", "energy_j", "hardware.bandwidth_gb_s"),
        ("pixel-9", "energy_j", "thermal.peak_w;"),
        ("pixel-9", "tokens_per_s_5min", "thermal.peak_w and thermal.sustained_w;"),
        ("iphone-17-pro", "energy_j", "thermal.peak_w;"),
    ],
)
def test_a_gate_on_what_cannot_be_predicted_names_what_is_not_known(name: str, metric: str, missing: str) -> None:
    gate = {"metric": f"predicted.{metric}", "task": None, "min": None, "max": 10}
    with pytest.raises(ConfigError, match=missing) as error:
        validation(group("validate", "default", gates=[gate]), group("device", name))
    assert f"device.{name}." in error.value.hint


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("web-wasm", "peak_memory_mib"),
        ("raspberry-pi-5", "energy_j"),
        ("raspberry-pi-5", "tokens_per_s_15min"),
        ("iphone-17-pro", "tokens_per_s_5min"),
        ("pixel-9", "first_token_ms"),
    ],
)
def test_a_gate_on_what_can_be_predicted_is_planned(name: str, metric: str) -> None:
    gate = {"metric": f"predicted.{metric}", "task": None, "min": 1, "max": None}
    validation(group("validate", "default", gates=[gate]), group("device", name, budgets={"memory_mib": 1}))


def test_narrower_numbers_are_as_fast_and_the_processor_for_them_is_faster(device: DeviceProfile) -> None:
    processors = asdict(device.hardware.peaks)
    for peaks in processors.values():
        known = [peaks[name] for name in ("int8", "float16", "float32") if peaks[name] is not None]
        assert known == sorted(known, reverse=True) and all(value > 0 for value in known)
    best = {name: max((value for value in peaks.values() if value), default=None) for name, peaks in processors.items()}
    ranked = [best[name] for name in ("npu", "gpu", "cpu") if best[name]]
    assert ranked == sorted(ranked, reverse=True)


def test_a_chip_is_the_same_in_each_table(device: DeviceProfile) -> None:
    if device.runtime is Runtime.coreml:
        chip = chip_of(device.chip)
        assert chip.name in CHIPS, "stages/devices/chips.py"
        assert chip.int8_compute is not False or device.hardware.peaks.npu.int8 is None
    soc = find_soc(device.chip)
    assert (soc.architecture if soc else None) == device.hardware.htp_version
    assert (soc is not None) == (device.hardware.soc is not None) == (HEXAGON in device.execution_providers)
    assert device.compile_for is None  # the compiler is not installed everywhere


def test_a_runtime_has_what_it_asks_for(device: DeviceProfile) -> None:
    assert set(device.fast_formats) <= set(device.weight_formats)
    assert len(set(device.weight_formats)) == len(device.weight_formats)
    if device.runtime is Runtime.coreml:
        assert device.compute_units and not device.execution_providers and device.head_width > 0
        assert coreml_system(device.minimum_os) is None
    else:
        assert device.execution_providers and not device.compute_units and device.head_width == 0
        assert device.execution_providers[-1] == ("wasm" if device.architecture == "wasm32" else "CPUExecutionProvider")


def test_profiles_promise_only_what_can_be_lowered(every: dict[str, DeviceProfile]) -> None:
    from stages.lowering import coreml, onnx

    formats = {Runtime.coreml: coreml.supported_formats(), Runtime.onnxruntime: onnx.supported_formats()}
    for device in every.values():
        assert set(device.weight_formats) <= set(formats[device.runtime]), device.name


def test_later_chips_are_no_slower(every: dict[str, DeviceProfile]) -> None:
    for names in (
        ["iphone-12", "iphone-13", "iphone-15", "iphone-15-pro", "iphone-16-pro", "iphone-17-pro"],
        ["macbook-air-m1", "macbook-air-m2", "macbook-air-m3", "macbook-air-m4", "mac-mini-m4-pro"],
        ["galaxy-s22", "galaxy-s23", "galaxy-s24", "galaxy-s25", "galaxy-s26"],
    ):
        line = [every[name].hardware for name in names]
        for earlier, later in pairwise(line):
            assert later.bandwidth_gb_s and earlier.bandwidth_gb_s and later.bandwidth_gb_s >= earlier.bandwidth_gb_s
            assert (later.peaks.cpu.float32 or 0) > (earlier.peaks.cpu.float32 or 0) > 0


@pytest.mark.parametrize(
    ("base", "like", "runtime"),
    [("a18", "iphone-16", Runtime.coreml), ("snapdragon-8-elite", "galaxy-s25", Runtime.onnxruntime)],
)
def test_a_phone_of_ones_own_is_five_lines(base: str, like: str, runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device/my-phone.yaml").write_text(PHONE.format(name="my-phone", base=base))
    found = profiles(["my-phone", like], tmp_path)
    mine, other = found["my-phone"], found[like]
    assert (mine.name, mine.title, mine.memory_gib, mine.runtime) == ("my-phone", "My Phone", 12, runtime)
    assert mine.sources["memory_gib"].source == "its box" and set(mine.sources) == set(numbers(mine))
    same = ("chip", "hardware", "weight_formats", "fast_formats", "execution_providers", "compute_units", "minimum_os")
    assert [getattr(mine, name) for name in same] == [getattr(other, name) for name in same]
    assert mine.thermal.mass_g is None  # of the other phone


def test_a_phone_may_bring_a_base_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "device/base").mkdir(parents=True)
    (tmp_path / "device/base/a20.yaml").write_text(
        "defaults: [a19@_here_, _self_]\nchip: A20\nhardware: {bandwidth_gb_s: 85.3}\n"
        "sources: {hardware.bandwidth_gb_s: {confidence: low, source: LPDDR5X-10667 on 64 bits}}\n"
    )
    (tmp_path / "device/my-phone.yaml").write_text(PHONE.format(name="my-phone", base="a20"))
    mine = profiles(["my-phone"], tmp_path)["my-phone"]
    assert (mine.chip, mine.hardware.bandwidth_gb_s, mine.runtime) == ("A20", 85.3, Runtime.coreml)
    assert mine.hardware.peaks.cpu.float32 == profiles(["iphone-17"])["iphone-17"].hardware.peaks.cpu.float32


def test_a_phone_without_a_title_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    text = PHONE.format(name="my-phone", base="a18").replace("title: My Phone\n", "")
    (tmp_path / "device/my-phone.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"device\.my-phone\.title has no value"):
        profiles(["my-phone"], tmp_path)


def test_all_devices_are_planned_together_and_share(tmp_path: Path) -> None:
    (tmp_path / "device").mkdir()
    (tmp_path / "device/my-phone.yaml").write_text(PHONE.format(name="my-phone", base="a18"))
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "plan",
        "--config-dir",
        str(tmp_path),
        "tracking=none",
        "device=all",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    nodes = [line.split()[0] for line in done.stdout.splitlines() if line and not line[0].isspace()]
    made = {
        stage: [name for name in nodes if re.fullmatch(rf"{stage}(-.+)?", name)]
        for stage in ("load", "quantize", "package")
    }
    assert len(made["load"]) == 1 and len(made["package"]) == len(DEVICES) + 1
    assert len(made["quantize"]) == 2, "one for all, and one for both of the web, of which one holds no 8 bits"
    saved = re.search(r"(\d+) devices share: (\d+) nodes without sharing, (\d+) saved", done.stdout)
    assert saved and int(saved[1]) == len(DEVICES) + 1 and int(saved[3]) > int(saved[2]) / 3
