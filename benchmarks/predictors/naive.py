"""A naive roofline: at the peaks, without anything fitted; and the same at half of them, with a cost an operator."""

import numpy as np

from stages.devices.calibration import Array

from .rows import CPU_GFLOPS, GPU_GB_S, NPU_GOPS, Table, hardware

# Of GPUs, whose peaks are not published: float32, of one with GPU_GB_S of memory.
_GPU_GFLOPS = 3000.0
_BYTES = {"float": 2.0, "w8a16": 1.0, "w8a8": 1.0}  # of a weight, as a Hexagon holds it
_ATTAINED, _OPERATOR_MS = 0.5, 0.002


def naive(table: Table, *, attained: float = 1.0, operator_ms: float = 0.0) -> Array:
    """As `measured`. A table that has been prepared; arithmetic that is not published is as estimated there."""
    features = table.features
    if "weights_ms" in features:
        peaks = {"cpu": CPU_GFLOPS, "npu": NPU_GOPS, "gpu": _GPU_GFLOPS}
        peak = np.array([peaks[situation["unit"]] for situation in table.situations])
        moved = features["weights_ms"] + features["cache_ms"]
        computed = (features["compute"] + features["attention"]) / peak * 1e3
        operators = 10 * features["operators"]  # of a layer, about
        if table.quantity == "decode":
            return moved / attained + operators * operator_ms
        if table.quantity == "prefill":  # of a token: the weights are read for the whole prompt
            return np.maximum(computed, moved / features["context"]) / attained
        return np.maximum(computed, moved) / attained + operators * operator_ms
    megabytes = features["megaparameters"] * np.array([_BYTES[s["precision"]] for s in table.situations])
    if table.quantity == "memory":
        return megabytes
    known = [hardware(situation["device"]) for situation in table.situations]
    bandwidth = np.array([each["bandwidth_gb_s"] for each in known])
    peak = np.array([_peak(each, s) for each, s in zip(known, table.situations, strict=True)])
    times = np.maximum(features["gigaflops"] / peak * 1e3, megabytes / bandwidth)
    return times / attained + features["operators"] * operator_ms


def half(table: Table) -> Array:
    """At half of the peaks and 2 microseconds an operator, for all devices and models."""
    return naive(table, attained=_ATTAINED, operator_ms=_OPERATOR_MS)


def _peak(known: dict[str, float], situation: dict[str, str]) -> float:
    """In 10^9 operations a second; a Hexagon computes float16 at about half of int8's."""
    if situation["unit"] == "npu":
        return known["npu_int8_gops"] * (0.5 if situation["precision"] == "float" else 1.0)
    return (
        known["cpu_float32_gflops"] if situation["unit"] == "cpu" else _GPU_GFLOPS * known["bandwidth_gb_s"] / GPU_GB_S
    )
