"""What becomes of values beyond float16's range, by the largest |value| that each node was seen to have in float32.

| policy  | a node whose value exceeds 65,504 / MARGIN                                                             |
|---------|--------------------------------------------------------------------------------------------------------|
| fail    | is an error that names all such nodes                                                                  |
| float32 | is computed in float32, as is what reads it; a result that fits is float16 again                       |
| scale   | is stored times 2^-k: weights and biases take the factor, where that is exact; sums are aligned;       |
|         | norms do not notice; views pass it on; what can do none of these computes in float32                   |

MARGIN is 1: a range is what was seen, on the images and the text of the probe. A model that comes near the limit
without a margin may pass it on other inputs; float16 then gives inf, and the answer is lost:
probe more images, or raise MARGIN.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var, types
from torch.export import ExportedProgram
from torch.fx import Node

from pipelines.errors import LoweringError, nearest
from stages.lowering.coreml.builder import FunctionBuilder
from stages.lowering.coreml.stored import FLOAT16_MAX
from stages.lowering.graph import Emitter, Weight, layer_name, operator_name, source_line

POLICIES = ("fail", "float32", "scale")
MARGIN = 1.0
LIMIT = FLOAT16_MAX / MARGIN
_tree_map, _leaves = torch.utils._pytree.tree_map, torch.utils._pytree.tree_leaves

LINEAR = {
    "aten.linear.default", "aten.conv1d.default", "aten.conv2d.default", "aten.conv1d.padding", "aten.conv2d.padding",
}  # fmt: skip
SUMS = {"aten.add.Tensor", "aten.sub.Tensor", "aten.cat.default", "aten.stack.default", "aten.maximum.default"}
PRODUCTS = {"aten.mul.Tensor", "aten.mul.Scalar"}
NORMS = {"aten.layer_norm.default": (4, 1e-5), "aten.rms_norm.default": (3, None)}  # epsilon's place, and default
PASSING = {
    "aten.view.default", "aten.reshape.default", "aten.flatten.using_ints", "aten.squeeze.dim",
    "aten.unsqueeze.default", "aten.permute.default", "aten.transpose.int", "aten.unbind.int", "aten.chunk.default",
    "aten.split.Tensor", "aten.slice.Tensor", "aten.select.int", "aten.expand.default", "aten.contiguous.default",
    "aten.clone.default", "aten.dropout.default", "aten.alias.default", "aten.relu.default",
    "aten.leaky_relu.default", "aten.neg.default", "aten.abs.default", "aten.mean.dim", "aten.max_pool2d.default",
    "aten.avg_pool2d.default", "aten.adaptive_avg_pool2d.default", "aten.upsample_nearest2d.vec",
    "aten.upsample_bilinear2d.vec", "aten.amax.default", "aten.repeat.default",
}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """A node whose value is not plain float16. how: "float32" or "x 2^-k".

    layer: the module that made it, as the model names it. value: the largest |value| seen, if known.
    """

    function: str
    node: str
    layer: str
    operator: str
    line: str
    value: float | None
    how: str

    def to_dict(self) -> dict[str, Any]:
        """For model.json."""
        return asdict(self)


class RangeCaller:
    """Makes the calls of emitters for a builder, in the dtype and the scale that the ranges ask for.

    peaks: node name -> largest |value|. `held` says afterwards which nodes are not plain float16.
    """

    def __init__(self, builder: FunctionBuilder, program: ExportedProgram, peaks: Mapping[str, float], policy: str):
        if policy not in POLICIES:
            raise LoweringError(
                f"overflow is '{policy}'", hint=f"{nearest(policy, POLICIES)} Policies: {', '.join(POLICIES)}."
            )
        self.held: list[Held] = []
        self._builder, self._peaks, self._policy = builder, peaks, policy
        self._exponents: dict[Var, int] = {}
        self._wide: dict[Var, Var] = {}
        _check(builder.spec.name, program, peaks, policy)
        builder.caller = self.call

    def input(self, name: str, var: Var) -> Var:
        """A floating input as the graph reads it: float16, but float32 where its values exceed that."""
        if self._peaks.get(name, 0.0) > LIMIT and var.dtype == types.fp32:
            return var
        narrow = var if var.dtype == types.fp16 else mb.cast(x=var, dtype="fp16", name=f"{name}_fp16")
        self._builder.peaks[narrow] = self._peaks.get(name, 0.0)
        return narrow

    def output(self, var: Var) -> Var:
        """A result of the graph as the function gives it: unscaled."""
        return self._widened(var) if self._exponents.get(var, 0) else var

    def call(self, node: Node, emitter: Emitter, arguments: Any, keywords: Any) -> Any:
        inputs = [leaf for leaf in _leaves([list(arguments), dict(keywords)]) if _is_floating(leaf)]
        plain = not any(var.dtype == types.fp32 or self._exponents.get(var, 0) for var in inputs)
        if plain and not any(peak > LIMIT for peak in self._results(node)):
            result = emitter(self._builder, node, *arguments, **keywords)
        elif operator_name(node) == "tapeout.cached_attention.default":
            result = self._cached(node, emitter, arguments, keywords)
        elif self._policy == "scale":
            result = self._scaled(node, emitter, arguments, keywords)
        else:
            result = self._in_float32(node, emitter, arguments, keywords)
        self._note_peaks(node, result)
        return result

    def _in_float32(self, node: Node, emitter: Emitter, arguments: Any, keywords: Any) -> Any:
        """Inputs cast up, weights as float32, each result cast down where it fits."""
        given, named = _tree_map(self._widened_leaf, (list(arguments), dict(keywords)))
        result = self._emitted(node, emitter, given, named, "float32")
        self._note(node, "float32")
        peaks = self._results(node)

        def fitted(var: Any, peak: float | None) -> Any:
            if not (isinstance(var, Var) and var.dtype == types.fp32 and peak is not None):
                return var
            return mb.cast(x=var, dtype="fp16") if peak <= LIMIT else self._stored(var, peak)

        return self._each(node, result, peaks, fitted)

    def _stored(self, var: Var, peak: float) -> Any:
        """A float32 result too large for float16: as it is, or scaled where that is the policy."""
        if self._policy != "scale":
            return var
        exponent = _exponent(peak)
        small = mb.cast(x=mb.mul(x=var, y=np.float32(2.0**-exponent)), dtype="fp16")
        self._exponents[small] = exponent
        return small

    def _scaled(self, node: Node, emitter: Emitter, arguments: Any, keywords: Any) -> Any:
        name, results = operator_name(node), self._results(node)
        inputs = [leaf for leaf in _leaves([list(arguments), dict(keywords)]) if _is_floating(leaf)]
        wanted = max((_exponent(peak) for peak in results), default=0)
        rule = {**dict.fromkeys(LINEAR, self._linear), **dict.fromkeys(SUMS, self._sum)}
        rule |= {**dict.fromkeys(PRODUCTS, self._product), **dict.fromkeys(NORMS, self._norm)}
        rule |= dict.fromkeys(PASSING, self._passed)
        if name in rule and results and not any(var.dtype == types.fp32 for var in inputs):
            made = rule[name](node, emitter, list(arguments), dict(keywords), wanted)
            if made is not None:
                result, exponent = made
                self._note(node, f"x 2^-{wanted}" if wanted else "float16, of scaled values")
                return self._each(
                    node, result, results, lambda var, peak: self._moved(var, exponent, _exponent(peak or 0.0))
                )
        return self._in_float32(node, emitter, arguments, keywords)

    def _linear(self, node: Node, emitter: Emitter, given: list[Any], named: dict[str, Any], wanted: int) -> Any:
        """W x + b: the weights times 2^(k of x - k of y), the bias times 2^-(k of y)."""
        weights = [part for part in [*given[1:3], *named.values()] if isinstance(part, Weight)]
        if not isinstance(given[1], Weight) or not isinstance(given[0], Var):
            return None
        exponents = dict.fromkeys((part.name for part in weights), -wanted)
        exponents[given[1].name] = self._exponents.get(given[0], 0) - wanted
        if not all(self._builder.exact(part, exponents[part.name]) for part in weights):
            return None
        return self._emitted(node, emitter, given, named, "float16", exponents), wanted

    def _sum(self, node: Node, emitter: Emitter, given: list[Any], named: dict[str, Any], wanted: int) -> Any:
        """All terms at the largest of their exponents and the result's."""
        terms = _leaves(given if operator_name(node) != "aten.cat.default" else given[0])
        common = max([wanted, *(self._exponents.get(term, 0) for term in terms if _is_floating(term))])
        weights = [term for term in terms if isinstance(term, Weight)]
        if not all(self._builder.exact(term, -common) for term in weights):
            return None

        def aligned(leaf: Any) -> Any:
            if _is_floating(leaf):
                return self._moved(leaf, self._exponents.get(leaf, 0), common)
            return leaf * 2.0**-common if isinstance(leaf, float) else leaf

        if any(type(term) is int for term in given):
            return None
        result = self._emitted(
            node, emitter, _tree_map(aligned, given), named, "float16", {term.name: -common for term in weights}
        )
        return result, common

    def _product(self, node: Node, emitter: Emitter, given: list[Any], named: dict[str, Any], wanted: int) -> Any:
        """Exponents add up; where the product needs a larger one, the first factor is made smaller beforehand."""
        factors = [leaf for leaf in given if _is_floating(leaf)]
        total = sum(self._exponents.get(factor, 0) for factor in factors)
        if not factors or len(factors) + sum(isinstance(leaf, Weight | int | float) for leaf in given) < len(given):
            return None
        if total < wanted:
            place, before = given.index(factors[0]), self._exponents.get(factors[0], 0)
            given[place] = self._moved(factors[0], before, before + wanted - total)
        return self._emitted(node, emitter, given, named, "float16"), max(total, wanted)

    def _norm(self, node: Node, emitter: Emitter, given: list[Any], named: dict[str, Any], wanted: int) -> Any:
        """Norms divide by the size: only epsilon, which is added to the square, takes the factor."""
        place, default = NORMS[operator_name(node)]
        epsilon = given[place] if len(given) > place else named.pop("eps", default)
        epsilon = torch.finfo(torch.float32).eps if epsilon is None else epsilon
        if wanted:
            return None
        given += [None] * (place - len(given))
        given[place:] = [epsilon * 4.0 ** -self._exponents.get(given[0], 0)]
        return self._emitted(node, emitter, given, {}, "float16"), 0

    def _passed(self, node: Node, emitter: Emitter, given: list[Any], named: dict[str, Any], wanted: int) -> Any:
        return self._emitted(node, emitter, given, named, "float16"), self._exponents.get(given[0], 0)

    def _cached(self, node: Node, emitter: Emitter, arguments: Any, keywords: Any) -> Any:
        """Caches are float16, so keys and values must fit; the result, a mean of values, then does."""
        for source in node.args[:3]:
            if self._peaks.get(source.name, 0.0) > LIMIT:  # type: ignore[union-attr]
                raise LoweringError(
                    f"{_place(node)}: a key, value or query reaches {self._peaks[source.name]:.6g}; "  # type: ignore[union-attr]
                    f"the cache is float16, whose range is {FLOAT16_MAX:.0f}",
                    hint="Scale the projection before it is quantized.",
                )
        return emitter(self._builder, node, *(self._narrow(leaf) for leaf in arguments), **keywords)

    def _narrow(self, leaf: Any) -> Any:
        return mb.cast(x=leaf, dtype="fp16") if _is_floating(leaf) and leaf.dtype == types.fp32 else leaf

    def _emitted(
        self,
        node: Node,
        emitter: Emitter,
        given: Any,
        named: Any,
        dtype: str,
        exponents: Mapping[str, int] | None = None,
    ) -> Any:
        builder = self._builder
        builder.dtype, builder.exponents = dtype, exponents or {}
        try:
            return emitter(builder, node, *given, **named)
        finally:
            builder.dtype, builder.exponents = "float16", {}

    def _moved(self, var: Any, before: int, after: int) -> Any:
        """A value stored times 2^-before, as one times 2^-after."""
        if not _is_floating(var):
            return var
        moved = var if before == after else mb.mul(x=var, y=np.float16(2.0 ** (before - after)))
        if after:
            self._exponents[moved] = after
        return moved

    def _widened_leaf(self, leaf: Any) -> Any:
        return self._widened(leaf) if _is_floating(leaf) else leaf

    def _widened(self, var: Var) -> Var:
        """The value itself, in float32. Once a Var."""
        if var not in self._wide:
            wide = var if var.dtype == types.fp32 else mb.cast(x=var, dtype="fp32")
            exponent = self._exponents.get(var, 0)
            self._wide[var] = mb.mul(x=wide, y=np.float32(2.0**exponent)) if exponent else wide
        return self._wide[var]

    def _results(self, node: Node) -> list[float]:
        """The known peaks of a node's results: its own, or those of the parts that are read."""
        names = [node.name, *(user.name for user in node.users if getattr(user.target, "__name__", "") == "getitem")]
        return [self._peaks[name] for name in names if name in self._peaks]

    def _each(self, node: Node, result: Any, peaks: list[float], change: Any) -> Any:
        """Apply `change` (var, peak) to a node's result, or to each of several."""
        peak = max(peaks) if peaks else None
        if isinstance(result, Var):
            return change(result, peak)
        return [change(var, peak) for var in result] if isinstance(result, list | tuple) else result

    def _note_peaks(self, node: Node, result: Any) -> None:
        peaks = self._results(node)
        for var in [result] if isinstance(result, Var) else result if isinstance(result, list | tuple) else []:
            if _is_floating(var) and peaks:
                self._builder.peaks[var] = max(peaks) * 2.0 ** -self._exponents.get(var, 0)

    def _note(self, node: Node, how: str) -> None:
        value = max(self._results(node), default=None)  # type: ignore[type-var]
        name = self._builder.spec.name
        self.held.append(Held(name, node.name, layer_name(node), operator_name(node), source_line(node), value, how))


def _check(function: str, program: ExportedProgram, peaks: Mapping[str, float], policy: str) -> None:
    nodes = {node.name: node for node in program.graph.nodes}
    if peaks and not nodes.keys() & peaks.keys():
        raise LoweringError(
            f"the ranges for '{function}' name none of its graph's nodes",
            hint="Take the ranges that were measured on this model.",
        )
    endless = [name for name in nodes if name in peaks and not math.isfinite(peaks[name])]
    if endless:
        raise LoweringError(
            f"'{function}' gives inf or NaN even in float32, first at {_place(nodes[endless[0]])}",
            hint="The checkpoint is damaged, or the calibration inputs are not what the model takes.",
        )
    over = [node for node in nodes.values() if peaks.get(node.name, 0.0) > LIMIT]
    if over and policy == "fail":
        layers = "; ".join(dict.fromkeys(f"{_place(node)} reaches {peaks[node.name]:.6g}" for node in over))
        raise LoweringError(
            f"'{function}' leaves float16's range of {FLOAT16_MAX:.0f}: {layers}",
            hint="Set overflow=float32, which computes these layers in float32, or overflow=scale.",
        )


def _place(node: Node) -> str:
    """The layer, and the line of the model."""
    return " at ".join(filter(None, [layer_name(node), source_line(node)]))


def _exponent(peak: float) -> int:
    """k, so that peak * 2^-k is within float16."""
    return max(0, math.ceil(math.log2(peak / LIMIT))) if peak > 0 else 0


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Var) and leaf.dtype in (types.fp16, types.fp32)
