"""The toy model, rounded and converted for ONNX Runtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, QuantizedModel
from stages.convert import convert
from stages.models.qwen2 import MaskedContext
from stages.runtimes.ort import OnnxSession
from stages.schema import (
    Budgets,
    ConvertConfig,
    DeviceProfile,
    FileFormat,
    Hardware,
    Overflow,
    Peak,
    Peaks,
    Prepacking,
    Runtime,
    Thermal,
    Unpacking,
)
from tests.rounded import rounded
from tests.toy import toy_checkpoint

CONTEXT = 64


@dataclass
class Converted:
    model: QuantizedModel
    device_model: DeviceModel
    session: OnnxSession

    def torch_logits(self, ids: list[int], rows: np.ndarray) -> np.ndarray:
        """(N, V) of the dequantized model, all tokens at once."""
        model, count = self.model.model(), len(ids)
        context = MaskedContext(torch.arange(count), torch.ones(count, count).tril().bool(), model.config.text)
        with torch.no_grad():
            embedded = model.embed(torch.tensor([ids]), torch.from_numpy(rows)[None])
            return model.text(embedded, context)[0].numpy()


def profile() -> DeviceProfile:
    """Of a device of whose speed nothing is known."""
    unknown = Peak(None, None, None)
    return DeviceProfile(
        name="toy",
        title="Toy",
        runtime=Runtime.onnxruntime,
        chip="",
        compute_units=[],
        execution_providers=["CPUExecutionProvider"],
        minimum_os="",
        memory_gib=1,
        weight_formats=[],
        fast_formats=[],
        architecture="arm64",
        head_width=0,
        file_format=FileFormat.onnx,
        prepacking=Prepacking.load,
        unpack_weights=Unpacking.never,
        optional_inputs=True,
        compile_for=None,
        hardware=Hardware(None, Peaks(unknown, unknown, unknown), None, None, None),
        thermal=Thermal(None, None, None, None, None),
        budgets=Budgets(None, None, None, None, None),
        sources={},
        overrides={},
    )


def converted(
    path: Path,
    accuracy_level: int = 1,
    tied: bool = False,
    device: DeviceProfile | None = None,
    **formats: Any,
) -> Converted:
    model = rounded(toy_checkpoint(path / "checkpoint", tied=tied), path / "quantized", **formats)
    (path / "device").mkdir()
    config = ConvertConfig(CONTEXT, prefill_chunk=32, accuracy_level=accuracy_level, overflow=Overflow.fail)
    device_model = convert(model, config, device or profile(), Workspace(path / "device", path / "scratch"))
    return Converted(model, device_model, OnnxSession(device_model))
