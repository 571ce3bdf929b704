"""The rules of the Neural Engine report: one function each, over a plain view of the program's protobuf.

A rule yields (risk, view, operation) for each operation that breaks it. Sources, by their public names: coreai-models
are Apple's published models and the rules beside them; ane-guide is the community's guide to the Neural Engine; a
number after # is an issue of that project.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.devices.chips import INT8_COMPUTE, Chip, int8_risk

LARGEST_RANK, LEAST_LAST_AXIS, LARGEST_SIDE, WIDEST_KERNEL = 5, 32, 16384, 13
WIDEST_HEAD, STATE_MULTIPLE = 16384, 32
LARGEST_PACKAGE, FEW_BITS = 10**9, 6
_GUIDES = "coreai-models; ane-guide"
_WIDTHS = {"BOOL": 8, "FLOAT16": 16, "FLOAT32": 32, "FLOAT64": 64, "BFLOAT16": 16}


@dataclass(frozen=True)
class Tensor:
    """A type: dtype as MIL's proto names it (FLOAT16, UINT4, ...); -1 in the shape is a size that varies."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bits(self) -> int:
        """Of all elements."""
        each = _WIDTHS.get(self.dtype) or int("".join(filter(str.isdigit, self.dtype)) or 0)
        return each * math.prod(self.shape)


@dataclass(frozen=True)
class Operation:
    """name and kind (the operator); inputs: the names that each argument is bound to; literals: constants given in
    place, as (type, bytes or numbers); results: the types that it makes."""

    name: str
    kind: str
    inputs: dict[str, list[str]]
    literals: dict[str, Any]
    results: dict[str, Tensor]

    @property
    def computes(self) -> bool:
        return self.kind != "const" and not self.kind.startswith("constexpr_")


@dataclass
class View:
    """A function: its operations in order, the types of all values, and who makes them."""

    function: str
    operations: list[Operation]
    lines: Any = field(default_factory=dict)
    types: dict[str, Tensor] = field(default_factory=dict)
    makers: dict[str, Operation] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)

    def operand(self, operation: Operation, argument: str) -> Tensor | None:
        """The type of what an argument is bound to."""
        if argument in operation.literals:
            return _tensor(operation.literals[argument].type)
        names = operation.inputs.get(argument, [])
        return self.types.get(names[0]) if names else None


Breach = tuple[str, View, Operation]
Check = Callable[[Sequence[View], Chip], Iterator[Breach]]


@dataclass(frozen=True)
class Rule:
    name: str
    source: str
    check: Check


RULES: list[Rule] = []


def rule(name: str, source: str) -> Callable[[Check], Check]:
    """Decorator: add a rule to the report."""

    def add(check: Check) -> Check:
        RULES.append(Rule(name, source, check))
        return check

    return add


def view_of(name: str, function: Any, lines: Any) -> View:
    """A function of an ML program's proto."""
    view = View(name, [], lines)
    for feature in function.inputs:
        is_state = feature.type.WhichOneof("type") == "stateType"
        kind = _tensor(feature.type.stateType.wrappedType if is_state else feature.type)
        (view.states if is_state else view.inputs)[feature.name] = view.types[feature.name] = kind
    for operation in function.block_specializations[function.opset].operations:
        inputs: dict[str, list[str]] = {}
        literals = {key: value for key, value in operation.attributes.items() if key != "name"}
        for argument, bound in operation.inputs.items():
            for binding in bound.arguments:
                if binding.WhichOneof("binding") == "name":
                    inputs.setdefault(argument, []).append(binding.name)
                else:
                    literals[argument] = binding.value
        results = {output.name: _tensor(output.type) for output in operation.outputs}
        text = operation.attributes["name"].immediateValue.tensor.strings.values
        made = Operation(text[0] if text else "", operation.type, inputs, literals, results)
        view.operations.append(made)
        view.types.update(results)
        view.makers.update(dict.fromkeys(results, made))
    return view


def _tensor(kind: Any) -> Tensor:
    tensor = kind.tensorType
    names = tensor.DESCRIPTOR.fields_by_name["dataType"].enum_type.values_by_number
    shape = tuple(
        dimension.constant.size if dimension.WhichOneof("dimension") == "constant" else -1
        for dimension in tensor.dimensions
    )
    return Tensor(names[tensor.dataType].name, shape)


def _results(views: Sequence[View]) -> Iterator[tuple[View, Operation, Tensor]]:
    for view in views:
        for operation in view.operations:
            if operation.computes:
                for result in operation.results.values():
                    yield view, operation, result


@rule("rank", _GUIDES)
def rank(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view, operation, result in _results(views):
        if len(result.shape) > LARGEST_RANK:
            yield (
                f"A tensor of rank {len(result.shape)}; the Neural Engine takes up to {LARGEST_RANK}.",
                view,
                operation,
            )


@rule("dtype", _GUIDES)
def dtype(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view, operation, result in _results(views):
        if result.dtype in ("FLOAT32", "FLOAT64"):
            yield (
                "Computed in float32; the Neural Engine computes float16 and int8, so this leaves it.",
                view,
                operation,
            )
        elif result.dtype in ("INT32", "UINT32", "INT16", "UINT16"):
            yield f"Computed in {result.dtype.lower()}; the Neural Engine computes float16 and int8.", view, operation


@rule("static-shape", _GUIDES)
def static_shape(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view, operation, result in _results(views):
        if -1 in result.shape:
            yield "A size that varies from call to call; the Neural Engine wants fixed shapes.", view, operation


@rule("last-axis", _GUIDES)
def last_axis(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view, operation, result in _results(views):
        if result.dtype != "FLOAT16" or len(result.shape) < 3 or not 0 < result.shape[-1] < LEAST_LAST_AXIS:
            continue
        if math.prod(result.shape) > result.shape[-1]:
            yield (
                f"A last axis of {result.shape[-1]}; it is padded to {LEAST_LAST_AXIS} or more, which costs memory.",
                view,
                operation,
            )


@rule("linear", _GUIDES)
def linear(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view in views:
        for operation in view.operations:
            if operation.kind == "linear":
                yield (
                    "A linear layer; as a 1x1 convolution on (B, C, 1, S) it runs faster on the Neural Engine.",
                    view,
                    operation,
                )


@rule("kernel-width", _GUIDES)
def kernel_width(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view in views:
        for operation in view.operations:
            weight = view.operand(operation, "weight") if operation.kind in ("conv", "conv_transpose") else None
            if weight and len(weight.shape) > 2 and weight.shape[-1] > WIDEST_KERNEL:
                risk = f"A kernel {weight.shape[-1]} wide; the Neural Engine takes up to {WIDEST_KERNEL}."
                yield risk, view, operation


@rule("side", _GUIDES)
def side(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view, operation, result in _results(views):
        if len(result.shape) > 1 and max(result.shape[-2:]) > LARGEST_SIDE:
            yield f"A side of {max(result.shape[-2:])}; the Neural Engine takes up to {LARGEST_SIDE}.", view, operation


@rule("wide-head", _GUIDES)
def wide_head(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view in views:
        for operation in view.operations:
            weight = view.operand(operation, "weight") if operation.kind in ("linear", "conv") else None
            if weight and weight.shape and weight.shape[0] > WIDEST_HEAD:
                yield (
                    f"A layer of {weight.shape[0]} outputs; split it, say into parts of 9,496 (head_width).",
                    view,
                    operation,
                )


@rule("infinite-mask", _GUIDES)
def infinite_mask(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view in views:
        for operation in view.operations:
            if any(_holds_infinity(value) for value in operation.literals.values()):
                yield (
                    "A constant of -inf; a row that is masked whole becomes NaN on the Neural Engine: use -40000.",
                    view,
                    operation,
                )


def _holds_infinity(value: Any) -> bool:
    if value.WhichOneof("value") != "immediateValue":
        return False
    tensor = value.immediateValue.tensor
    if any(number == -math.inf for number in tensor.floats.values):
        return True
    raw = tensor.bytes.values
    halves = [raw[at : at + 2] for at in range(0, len(raw), 2)]
    return _tensor(value.type).dtype == "FLOAT16" and b"\x00\xfc" in halves


@rule("state-size", "coremltools#2631")
def state_size(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view in views:
        for name, state in view.states.items():
            odd = [size for size in state.shape[-2:] if size % STATE_MULTIPLE]
            if odd:
                risk = f"State '{name}' has a side of {odd[0]}, no multiple of {STATE_MULTIPLE}, and may fail to load."
                yield risk, view, Operation(name, "state", {}, {}, {})


@rule("block-weights", "coreai-models#279")
def block_weights(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view in views:
        for operation in view.operations:
            scale = view.operand(operation, "scale") if operation.kind == "constexpr_blockwise_shift_scale" else None
            if scale and any(size > 1 for size in scale.shape[1:]):
                yield (
                    "Integer weights with a scale a block gave wrong numbers on the Neural Engine; palettes did not.",
                    view,
                    operation,
                )


@rule("scaled-palette", "coremltools#2688")
def scaled_palette(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view in views:
        for operation in view.operations:
            if operation.kind != "constexpr_blockwise_shift_scale":
                continue
            makers = [view.makers[name] for name in operation.inputs.get("data", []) if name in view.makers]
            if any(maker.kind in ("constexpr_lut_to_dense", "constexpr_sparse_to_dense") for maker in makers):
                yield "A palette with a scale a channel crashed the Neural Engine's compiler.", view, operation


@rule("package-size", _GUIDES)
def package_size(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    total, first = 0, None
    seen: set[tuple[str, int]] = set()
    for view in views:
        for operation in view.operations:
            for value in operation.literals.values():
                if value.WhichOneof("value") != "blobFileValue":
                    continue
                place = value.blobFileValue.fileName, value.blobFileValue.offset
                kind = _tensor(value.type)
                if place not in seen and kind.bits > FEW_BITS * math.prod(kind.shape):
                    total += kind.bits // 8
                    first = first or (view, operation)
                seen.add(place)
    if first and total >= LARGEST_PACKAGE:
        yield (
            f"{total / 1e9:.1f} GB of weights of more than {FEW_BITS} bits in one package; from 1 GB on it may "
            "not load on the Neural Engine.",
            *first,
        )


@rule(INT8_COMPUTE, "coremltools' guide")
def int8_compute(views: Sequence[View], chip: Chip) -> Iterator[Breach]:
    for view in views:
        for operation in view.operations:
            if operation.kind == "quantize" and not chip.int8_compute:
                yield int8_risk(chip), view, operation
