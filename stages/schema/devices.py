"""Devices, and what is converted for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Runtime(Enum):
    """What executes a bundle."""

    coreml = "coreml"
    onnxruntime = "onnxruntime"


class FileFormat(Enum):
    """Of ONNX Runtime's files: onnx with external data, or ort, which builds of a few operators load."""

    onnx = "onnx"
    ort = "ort"


class Prepacking(Enum):
    """When ONNX Runtime lays quantized weights out for its kernels: at load, never (half of the memory, far slower), or
    ahead, in the file (less memory, twice the file; for the build machine's kind of processor only)."""

    load = "load"
    off = "off"
    saved = "saved"


@dataclass
class Budgets:
    """What a bundle may take on a device, null where there is no limit. size_mib: bytes of its model files, in MiB.
    token_ms, first_token_ms, encode_ms: predicted for the device (stages/devices/roofline.py), in milliseconds: of
    one more token, of an image and the first token of the answer, of the image alone."""

    size_mib: float | None
    token_ms: float | None
    first_token_ms: float | None
    encode_ms: float | None


@dataclass
class Hardware:
    """What is publicly known of a device's speed, for predictions; null: not known. Peaks, of which no model reaches
    all: bandwidth_gb_s of memory, in 10^9 bytes; gflops, in 10^9, of the processor that runs the model, in the
    arithmetic that its runtime uses. operator_us: what each operator takes beside its work; null: what
    stages/devices/roofline.py assumes."""

    bandwidth_gb_s: float | None
    gflops: float | None
    operator_us: float | None


@dataclass
class DeviceProfile:
    """A device as the stages see it. memory_gib is what the device has; weight_formats is what its runtime can hold.

    compute_units (Core ML) and execution_providers (ONNX Runtime) are in order of preference.
    architecture: of its processor, arm64 or x86_64. file_format, prepacking: ONNX Runtime only.
    head_width (Core ML): words of the vocabulary that one part of the output head scores; 0: one head.
    hardware: how fast it is. budgets: what is held against every build as gates. overrides: {group: {key: value}}, this
    device's departures from the other groups.
    """

    name: str
    title: str
    runtime: Runtime
    chip: str
    compute_units: list[str]
    execution_providers: list[str]
    minimum_os: str
    memory_gib: float
    weight_formats: list[str]
    architecture: str
    head_width: int
    file_format: FileFormat
    prepacking: Prepacking
    hardware: Hardware
    budgets: Budgets
    overrides: dict[str, Any]


class Overflow(Enum):
    """What becomes of a layer whose values exceed float16: the build fails, it computes in float32, or is scaled."""

    fail = "fail"
    float32 = "float32"
    scale = "scale"


@dataclass
class ConvertConfig:
    """context: rows of the KV cache, the most tokens that prompt and answer can have. prefill_chunk: tokens of a call
    of Core ML's prefill function. overflow: what becomes of values beyond float16's range, where the runtime computes
    in it; they are looked for with `probe`. accuracy_level: of ONNX Runtime's quantized products; 4 rounds their inputs
    to int8, 1 keeps them float32."""

    context: int
    prefill_chunk: int
    accuracy_level: int
    overflow: Overflow
