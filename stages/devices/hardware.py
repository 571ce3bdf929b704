"""What is known of a device's speed, and of which processor: whether it can be predicted. Light: the plan asks too."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

from pipelines.errors import ConfigError
from stages.schema import DeviceProfile, Hardware, Peak, Runtime
from stages.schema.devices import Slowed

NPU, GPU, CPU = "npu", "gpu", "cpu"
UNITS = {  # the processor of each of Core ML's compute units and ONNX Runtime's execution providers
    "neural_engine": NPU,
    "gpu": GPU,
    "cpu": CPU,
    "QNNExecutionProvider": NPU,
    "TensorrtExecutionProvider": GPU,
    "CUDAExecutionProvider": GPU,
    "webgpu": GPU,
    "wasm": CPU,
    "CPUExecutionProvider": CPU,
}
_PROCESSORS = (NPU, GPU, CPU)


def predictable(device: DeviceProfile) -> bool:
    """Whether enough is known of its hardware to predict times."""
    return not _missing(device)


def check_numbers(device: DeviceProfile) -> None:
    """Raise ConfigError where what is said of its memory, its speed or its heat cannot be."""
    thermal = device.thermal
    heat = [(f"thermal.{name}", getattr(thermal, name)) for name in ("mass_g", "peak_w", "sustained_w")]
    _check_positive(device, [("memory_gib", device.memory_gib), *_speeds(device.hardware), *heat])
    steps, slowing = thermal.steps, thermal.slowing
    if steps is not None and not (steps and steps[0] == 1 and _falls(steps, strictly=True)):
        raise ConfigError(
            f"device {device.name}: thermal.steps is {steps}",
            hint="expected shares of full speed, from 1 on and each lower than the one before, such as [1.0,0.8,0.6]; "
            "or null",
        )
    if slowing is not None and not _slows(slowing):
        raise ConfigError(
            f"device {device.name}: thermal.slowing is {[asdict(each) for each in slowing]}",
            hint="expected seconds, each more than those before, and shares of full speed, above 0 and at most 1, none "
            "higher than the one before, such as [{seconds:60,share:1.0},{seconds:300,share:0.8}]; or null",
        )


def check_predictable(device: DeviceProfile) -> None:
    """Raise ConfigError where the device's times cannot be predicted, naming what is not known of it, and where what is
    said of it is no speed."""
    _check_positive(device, _speeds(device.hardware))
    if missing := _missing(device):
        names = " and ".join(f"hardware.{name}" for name in missing)
        raise ConfigError(
            f"device {device.name}: no latency can be predicted without {names}; found null, which is: not known",
            hint=f"set device.{device.name}.hardware.{missing[0]}=NUMBER, as the maker has it; or search.latency=none, "
            "and budgets of latency null",
        )


def check_metric(device: DeviceProfile, metric: str) -> None:
    """Raise ConfigError where that metric (token_ms, energy_j) cannot be predicted of any model on the device, naming
    what is not known of it. peak_memory_mib always can: it is of the model and the runtime."""
    if metric == "peak_memory_mib":
        return
    check_predictable(device)
    thermal = device.thermal
    needed: tuple[str, ...] = ()
    if metric == "energy_j":
        needed = ("peak_w",)
    elif metric.endswith("min") and not thermal.slowing:
        needed = ("peak_w", "sustained_w", "mass_g")
        if thermal.peak_w is not None and thermal.sustained_w is not None and thermal.sustained_w >= thermal.peak_w:
            needed = ()
    if missing := [name for name in needed if getattr(thermal, name) is None]:
        names = " and ".join(f"thermal.{name}" for name in missing)
        other = "" if metric == "energy_j" else ", or thermal.slowing as it was measured"
        raise ConfigError(
            f"device {device.name}: {metric} cannot be predicted without {names}; found null, which is: not known",
            hint=f"set device.{device.name}.thermal.{missing[0]}=NUMBER{other}; or leave out the gate",
        )


def processors(device: DeviceProfile) -> list[str]:
    """npu, gpu, cpu: those that its runtime uses, in order of fallback."""
    names = device.compute_units if device.runtime is Runtime.coreml else device.execution_providers
    return list(dict.fromkeys(UNITS[name] for name in names if name in UNITS))


def peak(hardware: Hardware, processor: str) -> float | None:
    """10^9 float operations a second, at most: of float16 on an NPU (half of int8's where that alone is known), of
    float32 on GPU and CPU (of float16 where that alone is). None: not known."""
    known: Peak = getattr(hardware.peaks, processor)
    if processor == NPU:
        return known.float16 or (known.int8 / 2 if known.int8 else None)
    return known.float32 or known.float16


def tower_processor(device: DeviceProfile) -> str | None:
    """Where the encoder is predicted to run: the first processor that the runtime uses and whose speed is known, by its
    peak or, of a Hexagon, by measurements of its kind. None: nothing is."""
    for processor in processors(device):
        if processor == NPU and device.runtime is Runtime.onnxruntime:
            if hexagon(device):
                return processor
        elif peak(device.hardware, processor) is not None:
            return processor
    return None


def hexagon(device: DeviceProfile) -> bool:
    """Whether the encoder runs on a Hexagon, of a version or chip that public measurements may know."""
    known = device.hardware.htp_version is not None or device.hardware.soc is not None
    return device.runtime is Runtime.onnxruntime and NPU in processors(device) and known


def decoder_processor(device: DeviceProfile) -> str | None:
    """Where the decoder is predicted to run. Its operators are com.microsoft's, of which ONNX Runtime has kernels for
    CPU and GPU alone; under Core ML as the encoder."""
    for processor in processors(device):
        if (processor != NPU or device.runtime is Runtime.coreml) and peak(device.hardware, processor) is not None:
            return processor
    return None


def _missing(device: DeviceProfile) -> list[str]:
    found = [] if device.hardware.bandwidth_gb_s is not None else ["bandwidth_gb_s"]
    if decoder_processor(device) is None or tower_processor(device) is None:
        used = [each for each in processors(device) if each != NPU or device.runtime is Runtime.coreml] or [CPU]
        kind = "float16" if used[0] == NPU else "float32"
        found.append(f"peaks.{used[0]}.{kind}")
    return found


def _check_positive(device: DeviceProfile, numbers: Sequence[tuple[str, float | None]]) -> None:
    for name, value in numbers:
        if value is not None and not (value > 0 or (name == "hardware.operator_us" and value == 0)):
            raise ConfigError(f"device {device.name}: {name} is {value}", hint="expected a number above 0, or null")


def _speeds(hardware: Hardware) -> list[tuple[str, float | None]]:
    names = ("bandwidth_gb_s", "operator_us", "htp_version")
    found: list[tuple[str, float | None]] = [(f"hardware.{name}", getattr(hardware, name)) for name in names]
    for processor in _PROCESSORS:
        known: Peak = getattr(hardware.peaks, processor)
        found += [(f"hardware.peaks.{processor}.{kind}", value) for kind, value in vars(known).items()]
    return found


def _slows(slowing: Sequence[Slowed]) -> bool:
    seconds = [0.0, *(each.seconds for each in slowing)]
    later = bool(slowing) and all(before < after for before, after in pairwise(seconds))
    return later and _falls([each.share for each in slowing], strictly=False)


def _falls(shares: Sequence[float], *, strictly: bool) -> bool:
    if not all(0 < share <= 1 for share in shares):
        return False
    return all(after < before or (after == before and not strictly) for before, after in pairwise(shares))
