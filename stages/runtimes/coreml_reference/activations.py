"""Rules of the activations, and of quantized activations."""

import torch
from torch.nn import functional as F

from stages.runtimes.coreml_reference.operators import DTYPES, Call, Kernel, operator


@operator("gelu")
def gelu(call: Call) -> Kernel:
    mode = call.static("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return Kernel(lambda x: x * torch.sigmoid(1.702 * x), ("x",), wide=True)
    approximate = "tanh" if mode == "TANH_APPROXIMATION" else "none"
    return Kernel(lambda x: F.gelu(x, approximate=approximate), ("x",), wide=True)


@operator("leaky_relu")
def leaky_relu(call: Call) -> Kernel:
    slope = call.static("alpha", 0.01)
    return Kernel(lambda x: F.leaky_relu(x, slope), ("x",))


@operator("elu")
def elu(call: Call) -> Kernel:
    alpha = call.static("alpha", 1.0)
    return Kernel(lambda x: F.elu(x, alpha), ("x",), wide=True)


@operator("relu6")
def relu6(call: Call) -> Kernel:
    return Kernel(F.relu6, ("x",))


@operator("prelu")
def prelu(call: Call) -> Kernel:
    """alpha has a value for each channel, the second axis."""
    return Kernel(F.prelu, ("x", "alpha"), wide=True)


@operator("sigmoid_hard")
def sigmoid_hard(call: Call) -> Kernel:
    alpha, beta = call.static("alpha", 0.2), call.static("beta", 0.5)
    return Kernel(lambda x: (alpha * x + beta).clamp(0, 1), ("x",), wide=True)


@operator("clamped_relu")
def clamped_relu(call: Call) -> Kernel:
    alpha, beta = call.static("alpha"), call.static("beta")
    return Kernel(lambda x: torch.where(x >= 0, x, alpha * x).clamp(max=beta), ("x",), wide=True)


@operator("thresholded_relu")
def thresholded_relu(call: Call) -> Kernel:
    alpha = call.static("alpha", 1.0)
    return Kernel(lambda x: torch.where(x >= alpha, x, torch.zeros_like(x)), ("x",))


@operator("threshold")
def threshold(call: Call) -> Kernel:
    alpha = call.static("alpha", 1.0)
    return Kernel(lambda x: x.clamp(min=alpha), ("x",))


@operator("linear_activation")
def linear_activation(call: Call) -> Kernel:
    alpha, beta = call.static("alpha"), call.static("beta", 0.0)
    return Kernel(lambda x: alpha * x + beta, ("x",), wide=True)


@operator("scaled_tanh")
def scaled_tanh(call: Call) -> Kernel:
    alpha, beta = call.static("alpha", 1.0), call.static("beta", 1.0)
    return Kernel(lambda x: alpha * torch.tanh(beta * x), ("x",), wide=True)


@operator("softplus")
def softplus(call: Call) -> Kernel:
    return Kernel(F.softplus, ("x",), wide=True)


@operator("softplus_parametric")
def softplus_parametric(call: Call) -> Kernel:
    """alpha * log(1 + exp(beta * x)), a value of each for each channel, the second axis."""

    def function(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        shape = [1, -1, *[1] * (x.dim() - 2)]
        return alpha.reshape(shape) * F.softplus(beta.reshape(shape) * x)

    return Kernel(function, ("x", "alpha", "beta"), wide=True)


@operator("softmax")
def softmax(call: Call) -> Kernel:
    axis = call.static("axis", -1)
    return Kernel(lambda x: x.softmax(axis), ("x",), wide=True)


@operator("quantize")
def quantize(call: Call) -> Kernel:
    """round(x / scale) + zero point, within int8's or uint8's range; scalars, or one each along `axis`."""
    dtype, axis = DTYPES[call.static("output_dtype")], call.static("axis", 0)
    limits = torch.iinfo(dtype)

    def function(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | int = 0) -> torch.Tensor:
        codes = torch.round(x / _along(scale, x, axis)) + _along(zero_point, x, axis)
        return codes.clamp(limits.min, limits.max).to(dtype)

    return Kernel(function, ("input", "scale", *call.given("zero_point")), wide=True)


@operator("dequantize")
def dequantize(call: Call) -> Kernel:
    """(codes - zero point) * scale; scalars, or one each along `axis`."""
    axis = call.static("axis", 0)

    def function(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | int = 0) -> torch.Tensor:
        return (codes.float() - _along(zero_point, codes, axis)) * _along(scale, codes, axis)

    return Kernel(function, ("input", "scale", *call.given("zero_point")), wide=True)


def _along(values: torch.Tensor | int, x: torch.Tensor, axis: int) -> torch.Tensor | int:
    if isinstance(values, int) or not values.dim():
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)
