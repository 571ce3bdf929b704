"""Convert: from the quantized model to what a runtime loads. Captured once, lowered by that runtime's table."""

from __future__ import annotations

import shutil
from typing import Any

from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, QuantizedModel
from stages.schema import DeviceProfile, Runtime


def convert(model: QuantizedModel, device: DeviceProfile, work: Workspace) -> DeviceModel:
    """Write encoder, decoder and model.json for device's runtime, with the tokenizer and preprocessing beside them.

    Raises LoweringError for an operator or a weight format that the runtime cannot hold.
    """
    result = DeviceModel(work.out)
    work.progress(0, 1, device.runtime.value)
    result.write_json("model.json", _lower(model, device, work))
    for name in ("tokenizer.json", "preprocessing.json"):
        shutil.copyfile(model.path / name, work.out / name)
    return result


def _lower(model: QuantizedModel, device: DeviceProfile, work: Workspace) -> dict[str, Any]:
    """Only the chosen runtime's libraries are imported: coremltools takes ten seconds."""
    if device.runtime is Runtime.coreml:
        from stages.lowering.coreml import lower_coreml

        return lower_coreml(
            model.config(), model.store(), work.out, context=device.context, prefill_chunk=device.prefill_chunk
        )
    from stages.lowering.onnx import lower_onnx

    return lower_onnx(
        model.config(), model.store(), work.out, context=device.context, accuracy_level=device.accuracy_level
    )
