"""A small FastVLM in Apple's layout and a small Qwen2, brought through the public stages."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipelines.project import Project, find_project
from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint, DeviceModel, Probe, QuantizedModel
from stages.convert import convert
from stages.evaluate import evaluate
from stages.load import load
from stages.models.layouts.new import new_checkpoint
from stages.probe import probe
from stages.quantize import quantize
from stages.schema import ModelConfig
from stages.validate import validate
from tests.conf import group

PROJECT = find_project(Path(__file__).parent)
DEVICES = {"onnxruntime": "pixel-8", "coreml": "iphone-15-pro"}
CONTEXT, CHUNK = 640, 64
QUANTIZED: dict[str, dict[str, Any]] = {
    "int4": {"method": "rtn", "embeddings": 4},  # as conf/model has it for FastVLM
    "int8": {},
    "none": {},
}
FEW_WORDS = {"onnxruntime": {}, "coreml": {"head_width": 256}}  # three parts of a head: two whole ones, and a rest


def device(runtime: str) -> Any:
    return group("device", DEVICES[runtime], **FEW_WORDS[runtime])


def workspace(path: Path) -> Workspace:
    path.mkdir(parents=True)
    return Workspace(path, path.parent / "scratch")


def tiny_checkpoint(path: Path, layout: str = "apple", tied: bool = True) -> Checkpoint:
    """fastvlm-tiny with two layers, and a block for each stage of a tower that gives four tokens; random weights."""
    model = OmegaConf.load(PROJECT.root / "conf/model/fastvlm-tiny.yaml")["model"]
    changes = {"vision": {"image_size": 128, "depths": [1] * 5}}
    model = OmegaConf.merge(
        model, {"shape": {**changes, "text": {"num_hidden_layers": 2, "tie_word_embeddings": tied}}}
    )
    (path / "conf/model").mkdir(parents=True)
    (path / "conf/model/small.yaml").write_text(OmegaConf.to_yaml(model))
    project = Project(PROJECT.root, (path / "conf",))
    assert new_checkpoint(["small", "--layout", layout, "--seed", "3", "--out", str(path / "files")], project) == 0
    return load(ModelConfig(str(path / "files"), None, None, None, None, None), workspace(path / "load"))


@dataclass
class Shipped:
    """A quantized model, and what the stages behind it make of it, under `path`."""

    path: Path
    checkpoint: Checkpoint
    model: QuantizedModel
    probed: Probe
    made: dict[tuple[Any, ...], DeviceModel] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, path: Path, kind: str = "int4", tokens: int = 512) -> "Shipped":
        model = quantize(checkpoint, group("quantize", kind, **QUANTIZED[kind]), workspace(path / "quantize"))
        return cls(
            path, checkpoint, model, probe(model, group("probe", "default", tokens=tokens), workspace(path / "probe"))
        )

    def device_model(self, runtime: str, model: QuantizedModel | None = None, **changes: Any) -> DeviceModel:
        """What convert makes of it, or of `model`; once for the same arguments."""
        key = runtime, model, *sorted(changes.items())
        if key not in self.made:
            config = group("convert", "default", **{"context": CONTEXT, "prefill_chunk": CHUNK, **changes})
            out = workspace(self.path / f"convert-{len(self.made)}")
            self.made[key] = convert(model or self.model, config, device(runtime), out, self.probed)
        return self.made[key]

    def metrics(self, runtime: str, device_model: DeviceModel, path: Path) -> dict[str, Any]:
        """What validate=parity measures, and its gates."""
        return validated(self.checkpoint, self.model, device_model, device(runtime), path, self.probed)


def validated(
    checkpoint: Checkpoint, model: QuantizedModel, device_model: DeviceModel, device: Any, path: Path, probed: Probe
) -> dict[str, Any]:
    """The metrics of validate=parity, with its gates."""
    config = group("validate", "parity")
    found = evaluate(checkpoint, model, device_model, config, workspace(path / "evaluate"), probe=probed)
    return validate(found, model, device_model, config, device, workspace(path / "validate")).metrics()


def main(path: Path) -> None:
    """Every stage for both devices, in that folder."""
    shipped = Shipped.of(tiny_checkpoint(path / "checkpoint"), path)
    for runtime in DEVICES:
        shipped.device_model(runtime)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
