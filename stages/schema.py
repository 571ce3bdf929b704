"""The types of every group in conf/. conf/ holds the values; nothing here has a default.

Read in the command line's start-up: only dataclasses and enum may be imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Method(Enum):
    """How codes are chosen: round to nearest; GPTQ (arXiv:2210.17323); a palette by weighted k-means (SqueezeLLM,
    arXiv:2306.07629); HQQ (mobiusml.github.io/hqq_blog); AWQ (arXiv:2306.00978); NNCF's compress_weights; training with
    quantized weights (LSQ, arXiv:1902.08153) after GPTQ; and auto, per weight by measured divergence."""

    rtn = "rtn"
    gptq = "gptq"
    kmeans = "kmeans"
    hqq = "hqq"
    awq = "awq"
    nncf = "nncf"
    qat = "qat"
    auto = "auto"


class Format(Enum):
    """How codes become weights: scale * (code - zero point), or a lookup in a palette."""

    affine = "affine"
    palette = "palette"


class Importance(Enum):
    """What weighs a weight's error: nothing, the second moment of its input, or its Fisher information."""

    uniform = "uniform"
    second_moment = "second_moment"
    fisher = "fisher"


class Draw(Enum):
    """What a calibration without data of your own runs on: the reference model's procedural questions, or token numbers
    drawn from the whole vocabulary, which try a size out and show nothing of a model's use."""

    questions = "questions"
    tokens = "tokens"


class Overflow(Enum):
    """What becomes of a layer whose values exceed float16: the build fails, it computes in float32, or is scaled."""

    fail = "fail"
    float32 = "float32"
    scale = "scale"


class ValidationKind(Enum):
    """The shipped files' answers to held-out questions, or their numbers against torch's with the same weights."""

    questions = "questions"
    parity = "parity"


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


class Runtime(Enum):
    """What executes a bundle."""

    coreml = "coreml"
    onnxruntime = "onnxruntime"


@dataclass
class ModelConfig:
    """path: the checkpoint's folder, relative to the project or absolute; hf://OWNER/NAME, of the hub, at `revision`, a
    commit; an MLflow URI (models:/NAME/VERSION, runs:/ID/PATH); or a path that DVC tracks.

    shape: what the checkpoint must be, as its config.json says in Tapeout's own layout; null takes any. module: a torch
    module of your own, {_target_: package.module.Class, ARGUMENT: VALUE}, with inputs, {NAME: {shape: [...], dtype:
    float32}}, and outputs, their names; null where config.json says which model it is.
    """

    path: str
    revision: str | None
    shape: dict[str, Any] | None
    module: dict[str, Any] | None
    inputs: dict[str, Any] | None
    outputs: list[str] | None


@dataclass
class CalibrateConfig:
    """samples: sequences, drawn by `seed`: of the folder `path` (quantizers/sequences.py says what it holds), or null:
    as `draw` says. tokens: the length of those of text and of drawn tokens. batch: how many run at once.

    image_token_weight: what an image token counts in the language model's second moments, where a token of text counts
    1 and one that predicts a token of the answer answer_token_weight. fisher: whether gradients are measured too, for
    palettes that they weigh and for what is chosen by sensitivity. threads: workers; the result does not depend on
    them.
    """

    path: str | None
    draw: Draw
    samples: int
    tokens: int
    seed: int
    batch: int
    image_token_weight: float
    answer_token_weight: float
    fisher: bool
    threads: int


@dataclass
class LayerOverride:
    """Weights whose name fits `pattern` (shell wildcards) depart from the rest in what is not null. bits 0: float16."""

    pattern: str
    method: Method | None = None
    format: Format | None = None
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    channel_scale: bool | None = None
    vector: int | None = None
    sparsity: float | None = None
    sparsity_pattern: str | None = None


@dataclass
class Budget:
    """What an automatic choice must keep, each null where it does not bind: bits, the average over all parameters of
    the model; bytes of all its weights; kl, the greatest divergence from the float model, in nats an answer token, on
    calibration questions, two standard errors included."""

    bits: float | None
    bytes: int | None
    kl: float | None


@dataclass
class QuantizeConfig:
    """bits, format and group size of the language model's and the projector's weights, and what departs from them.

    bits: 0 keeps float16. group_size: affine: weights along the input axis that share a scale (0: one scale a row);
    palette: rows that share a palette (0: one palette a tensor). channel_scale: a palette's rows have scales of their
    own. vector: rows that one entry of a palette stands for.
    embeddings, head: bits of the token embedding and of the output head (null: as `bits`); convolutions: of the tower's
    1x1 convolutions and linears; spatial: of its other convolutions, 0 or 8. For embeddings and convolutions 0 keeps
    float16, 8 is one scale a row, and fewer bits follow method, format and group_size.
    sparsity: share of each matrix's weights that become zero, the least important first; sparsity_pattern: "2:4" keeps
    2 of 4 along the input axis, null is unstructured.
    overrides: in order; a later one wins. damping, activation_order, scale_search: of gptq; scale_search of rtn too.
    refinement: passes of coordinate descent after gptq (quantizers/refine.py); 0 is plain GPTQ.
    importance: what weighs the errors of palettes. activations: bits of the inputs of the tower's products, with static
    ranges from the calibration; 0 or 8 (nncf). budget: of the methods auto and qat. training: of qat.
    """

    method: Method
    format: Format
    bits: int
    group_size: int
    symmetric: bool
    channel_scale: bool
    vector: int
    embeddings: int
    head: int | None
    convolutions: int
    spatial: int
    sparsity: float
    sparsity_pattern: str | None
    overrides: list[LayerOverride]
    damping: float
    activation_order: bool
    scale_search: bool
    refinement: int
    importance: Importance
    activations: int
    budget: Budget
    training: DistillConfig | None


class Measure(Enum):
    """What a format's cost is: the divergence that it causes, measured, or its estimate by the Fisher information."""

    kl = "kl"
    fisher = "fisher"


@dataclass
class Candidate:
    """What a weight could become; keys as of QuantizeConfig."""

    method: Method
    format: Format
    bits: int
    group_size: int
    symmetric: bool = False
    channel_scale: bool = False
    vector: int = 1


@dataclass
class SensitivityConfig:
    """measure: kl runs the model, which must fit in memory, with weights replaced, on `samples` questions of the
    calibration split drawn by `seed`, `batch` at a time, and judges allocations on as many others; fisher runs nothing.

    candidates: what competes; float16 always does. prune: a candidate is not measured where another takes no more bytes
    and has a Fisher score so many times less. damping, activation_order, scale_search, refinement, importance:
    how the methods run, as quantize will run them.
    """

    measure: Measure
    samples: int
    seed: int
    batch: int
    prune: float
    candidates: list[Candidate]
    damping: float
    activation_order: bool
    scale_search: bool
    refinement: int
    importance: Importance


@dataclass
class Budgets:
    """What a bundle may take on a device, null where there is no limit. size_mib: bytes of its model files, in MiB."""

    size_mib: float | None


@dataclass
class DeviceProfile:
    """A device as the stages see it. memory_gib is what the device has; weight_formats is what its runtime can hold.

    compute_units (Core ML) and execution_providers (ONNX Runtime) are in order of preference.
    architecture: of its processor, arm64 or x86_64. file_format, prepacking: ONNX Runtime only.
    head_width (Core ML): words of the vocabulary that one part of the output head scores; 0: one head.
    budgets: what is held against every build as gates. overrides: {group: {key: value}}, this device's departures from
    the other groups.
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
    budgets: Budgets
    overrides: dict[str, Any]


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


@dataclass
class ProbeConfig:
    """What the shipped weights are run on in torch: `images` (drawn by `seed`, or the first in `folder`, by name) for
    the range of each layer's values, the first of them also with a prompt and `tokens` of text for parity. The last
    bits depend on `threads`."""

    images: int
    tokens: int
    threads: int
    folder: str | None
    seed: int


@dataclass
class Gate:
    """A bound on a metric: min or max, the other null. task: null means each task for itself."""

    metric: str
    task: str | None
    min: float | None
    max: float | None


@dataclass
class QuestionsConfig:
    """The held-out questions that every artifact answers: per_task of each task, drawn by `seed`."""

    per_task: int
    seed: int


@dataclass
class ValidateConfig:
    """kind: what is measured, by so many threads. resamples and confidence of the paired bootstrap of questions, drawn
    by `seed`; and what must hold."""

    kind: ValidationKind
    threads: int
    resamples: int
    confidence: float
    seed: int
    gates: list[Gate]


@dataclass
class PackageConfig:
    """name and version of the bundle, as the manifest gives them."""

    name: str
    version: str


@dataclass
class TrainConfig:
    """The reference model's training. learning_rate is the peak; warmup, log_every and checkpoint_every are in steps;
    threads: of torch, where there is no CUDA device."""

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    warmup: int
    seed: int
    threads: int
    log_every: int
    checkpoint_every: int


@dataclass
class DistillConfig:
    """Steps of `batch` images with four questions each, drawn by `seed`. learning_rate is the peak, after `warmup`
    steps; of quantization-aware training it is in units of a weight matrix's root mean square.

    temperature of teacher and student; hard_share: share of the true answers in the loss, the rest being the teacher's;
    features, hidden: weights of the squared error of the visual tokens, and of each decoder layer's output at the text
    tokens, in units of the teacher's variance; 0 leaves them out.
    grid_rate: what scales and palettes learn at, as a share of learning_rate; float_rate: what stays float does
    (both of quantization-aware training only). threads: of torch, where there is no CUDA device. checkpoint_every:
    steps between saved states.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float
    temperature: float
    hard_share: float
    features: float
    hidden: float
    grid_rate: float
    float_rate: float
    seed: int
    threads: int
    log_every: int
    checkpoint_every: int


SCHEMAS: dict[str, type] = {
    "model": ModelConfig,
    "calibrate": CalibrateConfig,
    "sensitivity": SensitivityConfig,
    "quantize": QuantizeConfig,
    "device": DeviceProfile,
    "questions": QuestionsConfig,
    "convert": ConvertConfig,
    "probe": ProbeConfig,
    "validate": ValidateConfig,
    "package": PackageConfig,
    "train": TrainConfig,
    "distill": DistillConfig,
    "student": ModelConfig,
}
