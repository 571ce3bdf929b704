"""Where each tensor of a model comes from, and the check of a checkpoint's names, shapes and dtypes against that.

A tensor is stored as it is (`Stored`), or is a convolution that several tensors of the checkpoint make up
(`Convolution`), folded in float64 when it is written.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import CheckpointError, nearest
from stages.models.layouts.weights import WeightFiles, listed
from stages.models.vlm import ModelConfig

NORM_EPSILON = 1e-5  # of every batch norm in FastViT's code
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
_BUFFERS = (
    ".num_batches_tracked",
    ".rotary_emb.inv_freq",
)  # of training and of older versions; nothing depends on them
FLOATS = ("F16", "BF16", "F32")
INTEGERS = ("U8", "I8", "I32", "I64")  # of a user's module: positions, tables

Shape = tuple[int, ...]
Read = Callable[[str], NDArray[Any]]


@dataclass(frozen=True)
class Stored:
    """A tensor of the checkpoint, bits and all."""

    name: str
    shape: Shape

    def inputs(self) -> dict[str, Shape]:
        return {self.name: self.shape}


@dataclass(frozen=True)
class Term:
    """sign * scale * norm(kernel * x + bias), one of the branches whose sum a convolution is.

    kernel, bias: names of tensors; a kernel of None is the identity. norm: the prefix of a batch norm's tensors, scale
    the name of a layer scale (channels, 1, 1). size: the kernel's extent where it is smaller than the convolution's, in
    whose centre it lies.
    """

    kernel: str | None
    bias: str | None = None
    norm: str | None = None
    scale: str | None = None
    sign: int = 1
    size: int | None = None


@dataclass(frozen=True)
class Convolution:
    """The one convolution, or linear layer, that computes the sum of `terms`. shape: (out, in / groups, rows, columns).

    Structural reparameterisation (RepVGG, arXiv:2101.03697; MobileOne, arXiv:2206.04040), in float64.
    """

    shape: Shape
    terms: tuple[Term, ...]

    def inputs(self) -> dict[str, Shape]:
        """The tensors of the checkpoint that it is made of, with their shapes."""
        channels = self.shape[:1]
        found: dict[str, Shape] = {}
        for term in self.terms:
            if term.kernel:
                found[term.kernel] = (*self.shape[:2], term.size, term.size) if term.size else self.shape
            if term.bias:
                found[term.bias] = channels
            if term.norm:
                found |= {f"{term.norm}.{part}": channels for part in NORM_PARTS}
            if term.scale:
                found[term.scale] = (*channels, 1, 1)
        return found

    def weight(self, read: Read) -> NDArray[np.float64]:
        total = np.zeros(self.shape)
        for term in self.terms:
            kernel = read(term.kernel).astype(np.float64) if term.kernel else self._identity()
            factor = self._factor(term, read)
            kernel *= factor.reshape(-1, *[1] * (len(self.shape) - 1))
            edge = (self.shape[-1] - kernel.shape[-1]) // 2 if len(self.shape) == 4 else 0
            inner = (slice(edge, self.shape[-1] - edge),) * 2 if edge else ()
            total[(slice(None), slice(None), *inner)] += kernel
        return total

    def bias(self, read: Read) -> NDArray[np.float64]:
        total = np.zeros(self.shape[0])
        for term in self.terms:
            value = read(term.bias).astype(np.float64) if term.bias else np.zeros(self.shape[0])
            shift = 0.0
            if term.norm:
                value = value - read(f"{term.norm}.running_mean").astype(np.float64)
                shift = read(f"{term.norm}.bias").astype(np.float64) * self._outer(term, read)
            total += value * self._factor(term, read) + shift
        return total

    def _factor(self, term: Term, read: Read) -> NDArray[np.float64]:
        """What the branch multiplies its convolution with, (out,)."""
        factor = self._outer(term, read)
        if term.norm:
            variance = read(f"{term.norm}.running_var").astype(np.float64)
            factor = factor * read(f"{term.norm}.weight").astype(np.float64) / np.sqrt(variance + NORM_EPSILON)
        return factor

    def _outer(self, term: Term, read: Read) -> NDArray[np.float64]:
        """What stands before the branch's norm, (out,)."""
        scale = read(term.scale).astype(np.float64).reshape(-1) if term.scale else np.ones(self.shape[0])
        return term.sign * scale

    def _identity(self) -> NDArray[np.float64]:
        outputs, inputs = self.shape[:2]
        kernel = np.zeros(self.shape)
        rows = np.arange(outputs)
        centre = (self.shape[-1] // 2,) * 2 if len(self.shape) == 4 else ()
        kernel[(rows, rows % inputs, *centre)] = 1.0
        return kernel


@dataclass(frozen=True)
class Part:
    """The weight or the bias of a folded convolution, written as float32."""

    convolution: Convolution
    kind: str

    @property
    def shape(self) -> Shape:
        return self.convolution.shape if self.kind == "weight" else self.convolution.shape[:1]

    def inputs(self) -> dict[str, Shape]:
        return self.convolution.inputs()

    def value(self, read: Read) -> NDArray[np.float32]:
        value = self.convolution.weight(read) if self.kind == "weight" else self.convolution.bias(read)
        return value.astype(np.float32)


@dataclass
class Tensors:
    """{name in the model: where it comes from}, and what may lie in the checkpoint beside, unused.

    unused: prefixes of names that belong to the layout but not to the model.
    widened: prefix of tensors that are written as float32 whatever they are stored as.
    """

    sources: dict[str, Stored | Part] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    widened: str = "\0"

    def store(self, name: str, source: str, shape: Shape) -> None:
        self.sources[name] = Stored(source, shape)

    def fold(self, name: str, convolution: Convolution) -> None:
        for kind in ("weight", "bias"):
            self.sources[f"{name}.{kind}"] = Part(convolution, kind)

    def expected(self) -> dict[str, Shape]:
        """{name in the checkpoint: shape} of all that is used."""
        found: dict[str, Shape] = {}
        for source in self.sources.values():
            found |= source.inputs()
        return found

    def left_over(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that belong to the layout, but not to the model."""
        used = self.expected()
        return sorted(name for name in names if name not in used and name.startswith(self.unused))

    def dtype(self, name: str, weights: WeightFiles) -> str:
        """The dtype that the tensor `name` is written with."""
        source = self.sources[name]
        if isinstance(source, Part) or name.startswith(self.widened):
            return "F32"
        return weights.entries[source.name].dtype


@dataclass(frozen=True)
class Contents:
    """A checkpoint as its layout was read, in Tapeout's terms. preprocessing and tokenizer are None for a module."""

    config: ModelConfig
    preprocessing: dict[str, Any] | None
    tokenizer: bytes | None
    weights: WeightFiles
    tensors: Tensors


def check_tensors(
    weights: WeightFiles,
    tensors: Tensors,
    hints: Mapping[str, str] | None = None,
    *,
    of: str = "its config.json",
    integers: bool = False,
) -> None:
    """Raise CheckpointError, with all that is wrong, where the checkpoint holds other tensors than the model has.

    hints: {name of a tensor: what to do where no others than those in hints are missing or unexpected}. of: what says
    how the model is.
    integers: whether tensors may be integers too.
    """
    allowed = FLOATS + INTEGERS * integers
    expected, entries = tensors.expected(), weights.entries
    known = {*expected, *tensors.left_over(entries), *(name for name in entries if name.endswith(_BUFFERS))}
    missing, unexpected = sorted(expected.keys() - entries.keys()), sorted(entries.keys() - known)
    both = sorted(expected.keys() & entries.keys())
    shapes = [
        f"{name} (expected {list(expected[name])}, found {list(entries[name].shape)})"
        for name in both
        if expected[name] != entries[name].shape
    ]
    dtypes = [f"{name} (found {entries[name].dtype})" for name in both if entries[name].dtype not in allowed]
    kinds = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "neither float16, bfloat16 nor float32": dtypes,
    }
    problems = [f"{len(found)} {kind}: {listed(found)}" for kind, found in kinds.items() if found]
    if problems:
        where = weights.paths[0] if len(weights.paths) == 1 else weights.folder
        raise CheckpointError(
            f"{where} does not hold the tensors of {of}; " + "; ".join(problems),
            hint=_hint(missing, unexpected, bool(shapes), bool(dtypes), hints or {}),
        )


def _hint(missing: list[str], unexpected: list[str], shapes: bool, dtypes: bool, hints: Mapping[str, str]) -> str:
    alone = missing + unexpected
    if alone and all(name in hints for name in alone):
        return hints[alone[-1]]
    if missing and unexpected:
        close = nearest(unexpected[0], missing)
        renamed = f"'{unexpected[0]}': {close} " if close else ""
        return renamed + "Take the weights and the config.json of one and the same model."
    if missing:
        return "Complete the file, or correct config.json (num_hidden_layers, the tower's depths)."
    if shapes:
        return "Sizes are read from config.json: correct it, or take the weights that belong to it."
    if dtypes:
        return "Save the tensors anew with tensor.to(torch.float16), or torch.float32 where values exceed 65,504."
    return "Remove what does not belong to the model, or take the config.json that belongs to it."
