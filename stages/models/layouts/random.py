"""Random weights that behave: activations far inside float16's range, and a clear first choice among the next tokens.

Each tensor's values come from the seed, its name and the place in it alone, a chunk at a time. The tower keeps its
activations between 1 and 100. The decoder's branches are scaled by 1 / sqrt(2 layers) (GPT-2), and the embedding keeps
about a third of the residual stream's norm at the end, so that the head, which is the embedding again, sees the token
that went in: top-1 is then a choice that rounding does not turn, as a trained model's is. A head of its own holds the
embedding's rows in another order, so that one token leads to another.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.models.layouts.tensors import Convolution, Part, Shape, Stored, Tensors, Term

_CHUNK = 1 << 20  # values
_EMBEDDING, _BRANCH = 0.05, 0.28  # standard deviations of an embedding, and of what the branches add to it in all
_SCALES = {".projection": 0.6, "": 0.15}  # of layer scales: of attention, which is weak among convolutions, and others
# What a convolution multiplies its input's deviation with, about; those around a GELU, which halves small values, more.
_GAINS = {".mixer": 0.3, ".position": 0.3, ".squeeze": 0.2, ".excite": 0.5, ".ffn.": 1.0, ".projection": 1.0, "": 1.7}
_TYPES = {"bfloat16": ("BF16", np.uint16), "float16": ("F16", np.float16), "float32": ("F32", np.float32)}


@dataclass(frozen=True)
class Spread:
    """Normal values around `mean`, none below `least`. centred: 1 is added in the middle of every kernel. like: the
    tensor whose values it has instead of its own, with its last rows first if `turned`."""

    mean: float
    deviation: float
    least: float = -math.inf
    centred: bool = False
    like: str | None = None
    turned: bool = False


def spreads(tensors: Tensors, layers: int) -> dict[str, Spread]:
    """How the values of each tensor of the checkpoint are spread; layers: of the decoder."""
    found: dict[str, Spread] = {}
    for target, source in tensors.sources.items():
        if isinstance(source, Stored):
            found[source.name] = _stored(target, source.shape, layers, tensors)
        elif isinstance(source, Part):
            for term in source.convolution.terms:
                found |= _term(target.rpartition(".")[0], source.convolution, term)
    return found


def chunks(seed: int, name: str, shape: Shape, spread: Spread, dtype: str) -> Iterator[memoryview]:
    """The tensor's little-endian bytes, a chunk at a time."""
    size = math.prod(shape)
    row = shape[-1] if len(shape) == 2 else 1
    length = max(1, _CHUNK // row) * row
    places = [(start, min(length, size - start)) for start in range(0, size, length)]
    if spread.turned:
        places = places[-1:] + places[:-1]
    for start, count in places:
        values = _normal(seed, spread.like or name, start, count)
        values *= np.float32(spread.deviation)
        values += np.float32(spread.mean)
        if spread.least > -math.inf:
            np.maximum(values, np.float32(spread.least), out=values)
        if spread.centred:
            extent = shape[-1] * shape[-2]
            values[(extent // 2 - start) % extent :: extent] += 1
        yield _rounded(values, dtype)


def code(dtype: str) -> str:
    """safetensors' name of bfloat16, float16 or float32."""
    return _TYPES[dtype][0]


def _normal(seed: int, name: str, start: int, count: int) -> NDArray[np.float32]:
    digest = hashlib.sha256(f"{seed}/{name}/{start}".encode()).digest()
    entropy = np.frombuffer(digest, np.uint32).tolist()
    return np.random.Generator(np.random.SFC64(entropy)).standard_normal(count, np.float32)


def _rounded(values: NDArray[np.float32], dtype: str) -> memoryview:
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        bits += np.uint32(0x8000)
        return (bits >> np.uint32(16)).astype(np.uint16).data.cast("B")
    return values.astype(_TYPES[dtype][1]).data.cast("B")


def _stored(target: str, shape: Shape, layers: int, tensors: Tensors) -> Spread:
    """Of the decoder, the projector, and the tower's norms and attention."""
    if target == "text.embed_tokens.weight":
        return Spread(0, _EMBEDDING)
    if target == "text.lm_head.weight":
        embedding = tensors.sources["text.embed_tokens.weight"]
        assert isinstance(embedding, Stored)
        return Spread(0, _EMBEDDING, like=embedding.name, turned=True)
    if "norm" in target:
        return Spread(0, 0.1) if target.endswith("bias") else Spread(1, 0.1)
    if target.endswith(".bias"):
        return Spread(0, 0.1 * (_EMBEDDING if target == "projector.2.bias" else 1))
    deviation = 1 / math.sqrt(shape[1])
    if target.endswith(("o_proj.weight", "down_proj.weight")):
        return Spread(0, deviation * _BRANCH / math.sqrt(2 * layers))
    if target == "projector.2.weight":
        return Spread(0, deviation * _EMBEDDING)
    return Spread(0, deviation)


def _term(target: str, convolution: Convolution, term: Term) -> dict[str, Spread]:
    """One branch of a convolution in the tower. target: its name in the model."""
    shape, branches = convolution.shape, sum(each.kernel is not None for each in convolution.terms)
    mixing = target.endswith((".mixer", ".position"))  # deployed, these have an identity in their kernels
    inputs = math.prod(shape[1:]) if not term.size else shape[1] * term.size**2
    gain = next(value for part, value in _GAINS.items() if part in target)
    found: dict[str, Spread] = {}
    if term.kernel:
        alone = mixing and len(convolution.terms) == 1
        found[term.kernel] = Spread(0, gain / math.sqrt(inputs * branches), centred=alone)
    if term.bias:
        found[term.bias] = Spread(0, 0.05)
    if term.norm:
        found[f"{term.norm}.weight"] = Spread(1, 0.1)
        found[f"{term.norm}.bias"] = Spread(0, 0.1)
        found[f"{term.norm}.running_mean"] = Spread(0, 0.1)
        found[f"{term.norm}.running_var"] = Spread(1, 0.15, least=0.3)
    if term.scale:
        scale = next(value for part, value in _SCALES.items() if part in target)
        found[term.scale] = Spread(scale, scale / 4)
    return found
