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


class Unpacking(Enum):
    """How quantized weights become float32 where ONNX Runtime has no product that reads their codes fast, or right:
    never, those of products stay codes; folded, once, when the model is loaded; dequantized, by each run of the graphs
    of fixed shapes (the encoder, a user's module), while the decoder's products read codes."""

    never = "never"
    folded = "folded"
    dequantized = "dequantized"


@dataclass
class Budgets:
    """What a bundle may take on a device, null where there is no limit. size_mib: bytes of its model files, in MiB.
    memory_mib: of memory at its peak, and token_ms, first_token_ms, encode_ms: milliseconds of one more token, of an
    image and the first token of the answer, of the image alone: predicted for the device (stages/devices)."""

    size_mib: float | None
    memory_mib: float | None
    token_ms: float | None
    first_token_ms: float | None
    encode_ms: float | None


@dataclass
class Peak:
    """The most that a processor computes, in 10^9 operations a second, of which a multiplication with its addition is
    two; by what it computes in. null: not known, or not computed there."""

    int8: float | None
    float16: float | None
    float32: float | None


@dataclass
class Peaks:
    """By processor: npu (a Neural Engine, a Hexagon), gpu, and all cores of the cpu together."""

    npu: Peak
    gpu: Peak
    cpu: Peak


@dataclass
class Hardware:
    """What is publicly known of a device's speed, for predictions; null: not known. Peaks, of which no model reaches
    all: bandwidth_gb_s of memory, in 10^9 bytes; peaks of arithmetic. soc: what public measurements call the chip
    (stages/devices), null where there are none; htp_version: of a Hexagon. operator_us: what each operator takes beside
    its work; null: what the measurements say of its like."""

    bandwidth_gb_s: float | None
    peaks: Peaks
    soc: str | None
    htp_version: int | None
    operator_us: float | None


@dataclass
class Slowed:
    """share: of full speed, after so many seconds of uninterrupted work."""

    seconds: float
    share: float


@dataclass
class Thermal:
    """What is publicly known of a device's heat; null: not known. mass_g: of the whole device. peak_w: what it takes
    while a model runs at full speed; sustained_w: what it can give off for long. steps: shares of full speed that it
    falls back to when it is hot, from 1 on; null: those of stages/devices/thermal.py. slowing: as
    somebody measured it; goes before what follows from the others."""

    mass_g: float | None
    peak_w: float | None
    sustained_w: float | None
    steps: list[float] | None
    slowing: list[Slowed] | None


class Confidence(Enum):
    """high: the maker publishes it; medium: follows from published facts, or third parties agree; low: one third
    party, or an assumption is in it."""

    high = "high"
    medium = "medium"
    low = "low"


@dataclass
class Source:
    """Where a number of a profile is from."""

    confidence: Confidence
    source: str


@dataclass
class DeviceProfile:
    """A device as the stages see it. memory_gib is what the device has, null: not known; weight_formats is what its
    runtime can hold, fast_formats those of them that are fast there.

    compute_units (Core ML) and execution_providers (ONNX Runtime) are in order of fallback.
    architecture: of its processor, arm64, x86_64 or wasm32. file_format, prepacking, unpack_weights, optional_inputs (a
    caller may leave out what has a default): ONNX Runtime only.
    head_width (Core ML): words of the vocabulary that one part of the output head scores; 0: one head.
    compile_for: the chip whose Hexagon the encoder is compiled for in the build; null: the device's runtime compiles it
    at the first load, if it does.
    hardware, thermal: how fast it is, and for how long. budgets: what is held against every build as gates. sources: of
    the numbers in memory_gib, hardware and thermal, by dotted key. overrides: {group: {key: value}}, this device's
    departures from the other groups.
    """

    name: str
    title: str
    runtime: Runtime
    chip: str
    compute_units: list[str]
    execution_providers: list[str]
    minimum_os: str
    memory_gib: float | None
    weight_formats: list[str]
    fast_formats: list[str]
    architecture: str
    head_width: int
    file_format: FileFormat
    prepacking: Prepacking
    unpack_weights: Unpacking
    optional_inputs: bool
    compile_for: str | None
    hardware: Hardware
    thermal: Thermal
    budgets: Budgets
    sources: dict[str, Source]
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
