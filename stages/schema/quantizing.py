"""Calibration and quantization."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stages.schema.models import DistillConfig


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
    embeddings, head: bits of the token embedding and of the output head; convolutions: of the tower's 1x1 convolutions
    and linears (null, each of them: as `bits`); spatial: of its other convolutions, 0 or 8. For embeddings and
    convolutions 0 keeps float16, 8 is one scale a row, and fewer bits follow method, format and group_size.
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
    embeddings: int | None
    head: int | None
    convolutions: int | None
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
