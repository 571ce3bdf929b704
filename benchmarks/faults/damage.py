"""The faults: each makes, from a quantized model, the files of a device that have one thing wrong in them."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pipelines.workspace import Workspace
from stages.artifacts import DeviceModel, Probe, QuantizedModel
from stages.convert import convert
from stages.lowering.coreml import decoder
from stages.schema import ConvertConfig, DeviceProfile, Runtime
from stages.tensorfile import TensorReader, TensorWriter

SCALE, SHIFT = 1.1, 0.1


@dataclass(frozen=True)
class Subject:
    """What is damaged: the weights, what convert needs beside them, and the whole files."""

    model: QuantizedModel
    probe: Probe
    config: ConvertConfig
    device: DeviceProfile
    device_model: DeviceModel


@dataclass(frozen=True)
class Damaged:
    """model: what the stage quantize is taken to have given: damaged too, where the fault is there."""

    model: QuantizedModel
    device_model: DeviceModel
    what: str


def none(subject: Subject, rng: random.Random, path: Path) -> Damaged:
    """Nothing: converted again, which changes no byte."""
    return Damaged(subject.model, _converted(subject, subject.model, path), "nothing")


def scales(subject: Subject, rng: random.Random, path: Path) -> Damaged:
    """One layer's scales times 1.1, in the quantized weights or, in every other case, on the way into the files."""
    store = subject.model.store()
    name = rng.choice([name for name in store.names() if store.format(name).bits])
    where = rng.choice(("quantize", "convert"))
    model = _copied(subject.model, path / "model")
    weights = TensorReader(subject.model.path / "weights.safetensors")
    with TensorWriter(model.path / "weights.safetensors") as writer:
        for each in weights.entries:
            array = weights.array(each)
            found = each in (f"{name}.scales", f"{name}.palette")
            writer.add(each, (array.astype(np.float32) * SCALE).astype(array.dtype) if found else array)
    device_model = _converted(subject, model, path)
    return Damaged(model if where == "quantize" else subject.model, device_model, f"{name}, by {where}")


def tokens(subject: Subject, rng: random.Random, path: Path) -> Damaged:
    """Two entries of the shipped tokenizer swapped."""
    device_model = _copied(subject.device_model, path / "device")
    tokenizer = device_model.read_json("tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    first, second = rng.sample(sorted(vocabulary), 2)
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (device_model.path / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return Damaged(subject.model, device_model, f"{first!r} and {second!r}")


def mean(subject: Subject, rng: random.Random, path: Path) -> Damaged:
    """The mean that is taken off the shipped images, off by 0.1 in one channel or in all."""
    device_model = _copied(subject.device_model, path / "device")
    preprocessing, channel = device_model.read_json("preprocessing.json"), rng.choice((0, 1, 2, None))
    preprocessing["mean"] = [
        value + (SHIFT if channel in (None, index) else 0.0) for index, value in enumerate(preprocessing["mean"])
    ]
    device_model.write_json("preprocessing.json", preprocessing)
    return Damaged(subject.model, device_model, f"channel {channel}")


def cache(subject: Subject, rng: random.Random, path: Path) -> Damaged:
    """Rows of the KV cache written one position too late (Core ML: of single tokens)."""
    if subject.device.runtime is Runtime.coreml:
        with _replaced(decoder, "_store_rows", _late(decoder._store_rows)):
            return Damaged(subject.model, _converted(subject, subject.model, path), "one late")
    device_model = _converted(subject, subject.model, path)
    file = device_model.path / device_model.description()["files"]["decoder"]
    graph = onnx.load(file, load_external_data=False)
    node = next(each for each in graph.graph.node if each.op_type == "Sub")  # the number of rows, less one
    for index, value in enumerate(graph.graph.initializer):
        if value.name == node.input[1]:
            graph.graph.initializer[index].CopyFrom(numpy_helper.from_array(np.array([0], np.int32), value.name))
    onnx.save(graph, file)
    return Damaged(subject.model, device_model, "one late")


def rotary(subject: Subject, rng: random.Random, path: Path) -> Damaged:
    """The files made with another base of the rotary positions."""
    model, factor = _copied(subject.model, path / "model"), rng.choice((0.01, 0.1, 10.0, 100.0))
    config = model.read_json("config.json")
    config["text"]["rope_theta"] *= factor
    model.write_json("config.json", config)
    return Damaged(subject.model, _converted(subject, model, path), f"times {factor:g}")


FAULTS: dict[str, Callable[[Subject, random.Random, Path], Damaged]] = {
    "none": none,
    "scales": scales,
    "tokens": tokens,
    "mean": mean,
    "cache": cache,
    "rotary": rotary,
}


def _copied(artifact: Any, path: Path) -> Any:
    shutil.copytree(artifact.path, path)
    return type(artifact)(path)


def _converted(subject: Subject, model: QuantizedModel, path: Path) -> DeviceModel:
    out = path / "device"
    out.mkdir(parents=True)
    return convert(model, subject.config, subject.device, Workspace(out, path / "scratch"), probe=subject.probe)


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _late(store_rows: Callable[..., Any]) -> Callable[..., Any]:
    """Of single tokens: the rows of a prompt may end with the cache."""

    def later(context: Any, cache: Any, rows: Any, position: Any) -> Any:
        one = decoder._positions(context, position, np.array([1])) if int(rows.shape[2]) == 1 else position
        return store_rows(context, cache, rows, one)

    return later
