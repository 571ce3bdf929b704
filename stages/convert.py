"""Convert: from the quantized model to what a runtime loads. Captured once, lowered by that runtime's table."""

from __future__ import annotations

from typing import Any

from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, Probe, QuantizedModel
from stages.schema import ConvertConfig, DeviceProfile, Runtime


def convert(
    model: QuantizedModel, config: ConvertConfig, device: DeviceProfile, work: Workspace, probe: Probe | None = None
) -> DeviceModel:
    """Write the model's graphs and model.json for device's runtime, with the tokenizer and preprocessing beside them.

    probe: the range of each layer's values, for a runtime that computes in float16; None leaves that unchecked.
    Raises LoweringError for an operator or a weight format that the runtime cannot hold.
    """
    result = DeviceModel(work.out)
    work.progress(0, 1, device.runtime.value)
    result.write_json("model.json", _lower(model, config, device, work, probe))
    model.copy_preprocessing(work.out)
    return result


def _lower(
    model: QuantizedModel, config: ConvertConfig, device: DeviceProfile, work: Workspace, probe: Probe | None
) -> dict[str, Any]:
    """Only the chosen runtime's libraries are imported: coremltools takes ten seconds."""
    if device.runtime is Runtime.coreml:
        from stages.lowering.coreml import lower_coreml

        return lower_coreml(
            model.config(),
            model.store(),
            work.out,
            context=config.context,
            prefill_chunk=config.prefill_chunk,
            head_width=device.head_width,
            ranges=probe.ranges() if probe else None,
            overflow=config.overflow.value,
        )
    from stages.lowering.onnx import lower_onnx

    description = lower_onnx(
        model.config(),
        model.store(),
        work.out,
        context=config.context,
        accuracy_level=config.accuracy_level,
        format=device.file_format.value,
        prepacking=device.prepacking.value,
        architecture=device.architecture,
        unpack_weights=device.unpack_weights.value,
        optional_inputs=device.optional_inputs,
    )
    if device.compile_for and model.config().vision:
        from stages.lowering.onnx.hexagon import compile_encoder

        ranges = probe.ranges() if probe else None
        description["hexagon"] = compile_encoder(model.config(), model.store(), work.out, device.compile_for, ranges)
    return description
