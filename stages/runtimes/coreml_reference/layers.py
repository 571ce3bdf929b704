"""Rules of the operators that multiply and normalise: products, convolutions, pooling, norms, attention."""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from stages.runtimes.coreml_reference.operators import Call, Kernel, operator
from stages.runtimes.coreml_reference.package import ProgramError
from stages.runtimes.coreml_reference.weights import Weight, fill

_VALUES_AT_A_TIME = 1 << 20  # of a packed weight


@operator("linear")
def linear(call: Call) -> Kernel:
    operands = ("x", "weight", *call.given("bias"))
    return Kernel(F.linear, operands, wide=True, packed=_linear_by_rows, packed_at=1, packed_late=True)


def _linear_by_rows(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As F.linear, with some output channels at a time."""
    count, columns = weight.shape[:2]
    buffer = torch.empty(min(max(_VALUES_AT_A_TIME // columns, 1), count), columns)
    parts = []
    for start in range(0, count, len(buffer)):
        rows = fill(buffer[: count - start], weight, start)
        parts.append(F.linear(x, rows, None if bias is None else bias[start : start + len(rows)]))
    return torch.cat(parts, -1)


@operator("matmul")
def matmul(call: Call) -> Kernel:
    flip_x, flip_y = bool(call.static("transpose_x", False)), bool(call.static("transpose_y", False))

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.matmul(x.mT if flip_x else x, y.mT if flip_y else y)

    return Kernel(function, ("x", "y"), wide=True)


@operator("einsum")
def einsum(call: Call) -> Kernel:
    equation = call.static("equation")
    return Kernel(lambda *values: torch.einsum(equation, *values), ("values",), wide=True)


@operator("scaled_dot_product_attention")
def attention(call: Call) -> Kernel:
    return Kernel(F.scaled_dot_product_attention, ("query", "key", "value", *call.given("attn_mask")), wide=True)


@operator("conv")
def conv(call: Call) -> Kernel:
    axes = call.ranks["x"] - 2
    strides, dilations = call.static("strides", [1] * axes), call.static("dilations", [1] * axes)
    groups = call.static("groups", 1)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    padding = _padding(call, axes)

    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        x, symmetric = padding(x, weight.shape[2:], strides, dilations, 0.0)
        return convolve(x, weight, bias, strides, symmetric, dilations, groups)

    return Kernel(function, ("x", "weight", *call.given("bias")), wide=True)


@operator("conv_transpose")
def conv_transpose(call: Call) -> Kernel:
    axes = call.ranks["x"] - 2
    strides, dilations = call.static("strides", [1] * axes), call.static("dilations", [1] * axes)
    groups, shape = call.static("groups", 1), call.static("output_shape", None)
    pad = call.static("pad", [0] * 2 * axes) if call.static("pad_type", "valid") == "custom" else [0] * 2 * axes
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]

    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        whole = convolve(x, weight, bias, strides, 0, 0, groups, dilations)
        for axis in range(axes):
            before, after = pad[2 * axis : 2 * axis + 2]
            size = whole.shape[2 + axis] - before - after if shape is None else shape[2 + axis]
            missing = before + size - whole.shape[2 + axis]
            if missing > 0:
                whole = F.pad(whole, [0, 0] * (axes - 1 - axis) + [0, missing])
            whole = whole.narrow(2 + axis, before, size)
        return whole

    return Kernel(function, ("x", "weight", *call.given("bias")), wide=True)


@operator("max_pool")
def max_pool(call: Call) -> Kernel:
    axes = call.ranks["x"] - 2
    kernel, ones = call.static("kernel_sizes"), [1] * axes
    strides, ceil = call.static("strides", ones), bool(call.static("ceil_mode", False))
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1]
    padding = _padding(call, axes)

    def function(x: torch.Tensor) -> torch.Tensor:
        x, symmetric = padding(x, kernel, strides, ones, -math.inf)
        return pool(x, kernel, strides, symmetric, 1, ceil)

    return Kernel(function, ("x",), wide=True)


@operator("avg_pool")
def avg_pool(call: Call) -> Kernel:
    axes = call.ranks["x"] - 2
    kernel, ones = call.static("kernel_sizes"), [1] * axes
    strides, ceil = call.static("strides", ones), bool(call.static("ceil_mode", False))
    exclude = bool(call.static("exclude_padding_from_average", False))
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1]
    padding = _padding(call, axes)

    def function(x: torch.Tensor) -> torch.Tensor:
        padded, symmetric = padding(x, kernel, strides, ones, 0.0)
        average = pool(padded, kernel, strides, symmetric, ceil, not exclude)
        if exclude and padded is not x:  # padded by hand: undo the padding's share
            shares, _ = padding(torch.ones_like(x), kernel, strides, ones, 0.0)
            average = average / pool(shares, kernel, strides, symmetric, ceil, True)
        return average

    return Kernel(function, ("x",), wide=True)


@operator("l2_pool")
def l2_pool(call: Call) -> Kernel:
    axes = call.ranks["x"] - 2
    kernel, ones = call.static("kernel_sizes"), [1] * axes
    strides = call.static("strides", ones)
    pool = (F.avg_pool1d, F.avg_pool2d)[axes - 1]
    padding = _padding(call, axes)

    def function(x: torch.Tensor) -> torch.Tensor:
        padded, symmetric = padding(x.square(), kernel, strides, ones, 0.0)
        return (pool(padded, kernel, strides, symmetric) * math.prod(kernel)).sqrt()

    return Kernel(function, ("x",), wide=True)


Padding = Callable[[torch.Tensor, Sequence[int], Sequence[int], Sequence[int], float], tuple[torch.Tensor, list[int]]]


def _padding(call: Call, axes: int) -> Padding:
    """(x, kernel, strides, dilations, fill) -> x, padded where that is lopsided, and the symmetric padding left."""
    kind = call.static("pad_type", "valid")
    given = call.static("pad", [0] * 2 * axes)
    if kind not in ("valid", "custom", "same", "same_lower"):
        raise ProgramError(f"operation '{call.name}' ({call.type}): unknown pad_type '{kind}'")

    def pad(
        x: torch.Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], fill: float
    ) -> tuple[torch.Tensor, list[int]]:
        amounts = given if kind == "custom" else [0] * 2 * axes
        if kind.startswith("same"):
            amounts = []
            for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
                total = max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
                less, more = total // 2, total - total // 2
                amounts += [less, more] if kind == "same" else [more, less]
        before, after = amounts[0::2], amounts[1::2]
        if before == after:
            return x, before
        lopsided = [amount for pair in reversed(list(zip(before, after, strict=True))) for amount in pair]
        return F.pad(x, lopsided, value=fill), [0] * axes

    return pad


@operator("layer_norm")
def layer_norm(call: Call) -> Kernel:
    rank = call.ranks["x"]
    axes = sorted(axis % rank for axis in call.static("axes", list(range(rank))))
    epsilon = call.static("epsilon", 1e-5)
    affine = call.given("gamma", "beta")
    last = axes == list(range(rank - len(axes), rank))

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(affine, parameters, strict=True))
        if last:
            return F.layer_norm(x, x.shape[rank - len(axes) :], named.get("gamma"), named.get("beta"), epsilon)
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
        normal = (x - mean) * torch.rsqrt(variance + epsilon)
        scaled = normal * named["gamma"].reshape(shape) if "gamma" in named else normal
        return scaled + named["beta"].reshape(shape) if "beta" in named else scaled

    return Kernel(function, ("x", *affine), wide=True)


@operator("batch_norm")
def batch_norm(call: Call) -> Kernel:
    epsilon = call.static("epsilon", 1e-5)
    affine = call.given("gamma", "beta")

    def function(
        x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        named = dict(zip(affine, parameters, strict=True))
        return F.batch_norm(x, mean, variance, named.get("gamma"), named.get("beta"), False, 0.0, epsilon)

    return Kernel(function, ("x", "mean", "variance", *affine), wide=True)


@operator("instance_norm")
def instance_norm(call: Call) -> Kernel:
    epsilon = call.static("epsilon", 1e-5)
    affine = call.given("gamma", "beta")

    def function(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(affine, parameters, strict=True))
        return F.instance_norm(x, weight=named.get("gamma"), bias=named.get("beta"), eps=epsilon)

    return Kernel(function, ("x", *affine), wide=True)


@operator("l2_norm")
def l2_norm(call: Call) -> Kernel:
    epsilon = call.static("epsilon", 1e-6)

    def function(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()

    return Kernel(function, ("x",), wide=True)


@operator("local_response_norm")
def local_response_norm(call: Call) -> Kernel:
    size, alpha = call.static("size"), call.static("alpha", 1e-4)
    beta, k = call.static("beta", 0.75), call.static("k", 1.0)
    return Kernel(lambda x: F.local_response_norm(x, size, alpha, beta, k), ("x",), wide=True)
