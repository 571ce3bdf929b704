"""The most memory that a runtime takes for a model: weights as loaded, the cache, activations, and itself."""

from collections.abc import Mapping

from stages.devices.calibration import Estimate
from stages.devices.work import cache_bytes, loaded_bytes, work_of
from stages.models.vlm import ModelConfig
from stages.schema import DeviceProfile, Prepacking, Runtime

# ONNX Runtime 1.31 with a 0.5B model in int4 (278 MB of codes) on the build machine took 617 MB as it loads by default,
# 186 with prepacking off, and 298 prepacked in the file: above the process's 60, by how much it is of the codes. A file
# that is not packed is mapped, and its pages count only as far as they are read and kept.
_PROCESS_MB = 60.0
_OF_CODES = {Prepacking.load: 2.0, Prepacking.off: 0.45, Prepacking.saved: 0.86}
# Core ML has no published figure: weights once, and as large a process.
_COREML_OF_CODES = 1.0
# The interval is a judgement: allocators round up, and what is mapped need not be resident.
_LOW, _HIGH = 0.6, 1.6


def peak_memory(
    model: ModelConfig, sizes: Mapping[str, int], device: DeviceProfile, *, context: int, text_tokens: int
) -> Estimate:
    """In MiB, with encoder and decoder loaded. Raises as work_of does."""
    codes, floats = loaded_bytes(model, sizes, device.runtime)
    work = work_of(model, sizes, device.runtime, context=context, text_tokens=text_tokens)
    factor = _COREML_OF_CODES if device.runtime is Runtime.coreml else _OF_CODES[device.prepacking]
    activations = 2e6 * max(each.activation_megabytes for each in work.values())
    total = 1e6 * _PROCESS_MB + factor * codes + floats + cache_bytes(model, device.runtime, context=context)
    found = (total + activations) / 2**20
    return Estimate(found, _LOW * found, _HIGH * found, judged=True)


def basis_of_memory(device: DeviceProfile) -> str:
    """On what it rests, a sentence."""
    if device.runtime is Runtime.coreml:
        return (
            "weights once, cache and activations in float16, a process of 60 MB: nothing was measured under Core ML; "
            "the interval is judged"
        )
    return (
        "what ONNX Runtime took on the build machine for a 0.5B model in int4, by its way of loading; the interval is "
        "judged"
    )
