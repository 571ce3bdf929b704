"""Run the shipped files, and hold them against torch and against the checkpoint that they were made from."""

from typing import Any

import torch

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.artifacts import Baseline, Checkpoint, DeviceModel, Evaluation, Probe, QuantizedModel
from stages.evaluation.fidelity import weights
from stages.evaluation.parity import measure_parity
from stages.evaluation.questioning import ask
from stages.schema import ValidateConfig, ValidationKind


def evaluate(
    checkpoint: Checkpoint,
    model: QuantizedModel,
    device_model: DeviceModel,
    config: ValidateConfig,
    work: Workspace,
    baseline: Baseline | None = None,
    probe: Probe | None = None,
) -> Evaluation:
    """metrics.json and layers.json; where questions are asked, answers.jsonl and flips.jsonl.

    checkpoint: what was quantized. baseline: needed for questions; probe: for parity. Raises StageError for questions
    to a model that cannot answer.
    """
    torch.set_num_threads(config.threads)
    if config.kind is ValidationKind.parity:
        if probe is None:
            raise StageError("validate.kind=parity needs a probe", hint="give stage evaluate `needs: {probe: probe}`")
        found: dict[str, Any] = {
            "tasks": {},
            "parity": measure_parity(model, probe, device_model, config.threads, work.progress),
            "fidelity": {},
        }
    else:
        if baseline is None:
            raise StageError("validate.kind=questions needs a baseline", hint="set validate=parity, or give it one")
        found = ask(checkpoint, model, device_model, baseline, config, work)
    result = Evaluation(work.out)
    layers, floats = weights(checkpoint, model)
    if model.weights_were() == "checkpoint":  # else sizes differ on purpose
        found["fidelity"] |= {"floats": floats, "scale_error": max((layer.scale for layer in layers), default=0.0)}
    result.write_json("layers.json", {layer.name: layer.to_json() for layer in layers})
    size = sum(path.stat().st_size for path in device_model.path.rglob("*") if path.is_file())
    result.write_json("metrics.json", {**found, "size_bytes": size})
    return result
