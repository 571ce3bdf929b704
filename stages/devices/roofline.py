"""The latency of a model on a device that is not here, from what it computes and how fast the device is said to be."""

from collections.abc import Iterable, Mapping

from stages.devices.hardware import check_predictable
from stages.devices.latency import Latency
from stages.devices.operators import DECODE, ENCODER, PREFILL, Operator, graphs, parameter_sizes
from stages.models.vlm import ModelConfig
from stages.schema import DeviceProfile, Runtime

# Three assumptions, for every device and model. ATTAINED: the share of the peaks of bandwidth and arithmetic that a
# runtime reaches; ONNX Runtime read a 0.5B model's int4 weights at 0.45 of what the build machine's memory gives (34
# tokens a second of 75), and of mobile processors nothing is measured here. OPERATOR_US: what an operator takes beside
# its work, where the profile does not say; ONNX Runtime took 48 us on the build machine for 21 operators of next to no
# work (stages/devices/host.py). TEXT_TOKENS: of a prompt beside its image.
ATTAINED = 0.5
OPERATOR_US = 2.0
TEXT_TOKENS = 16


class Roofline:
    """Each operator takes as long as its arithmetic or its bytes do, whichever is more (doi:10.1145/1498765.1498785),
    by ATTAINED of the device's peaks, and operator_us beside it. Processors' caches are not counted: all bytes come
    from memory.

    What the runtime reads: ONNX Runtime's CPU kernels compute in float32, and read quantized codes only in linears;
    other weights are float32 from loading on. Core ML's activations are float16, and its weights stay as stored; that
    its prefill takes the prompt in chunks, and reads them once for each, is not counted.
    """

    def __init__(self, device: DeviceProfile, *, context: int, text_tokens: int = TEXT_TOKENS):
        """Raises ConfigError where the device's speed is not known."""
        check_predictable(device)
        hardware = device.hardware
        assert hardware.bandwidth_gb_s and hardware.gflops
        self._bytes_ms, self._flops_ms = hardware.bandwidth_gb_s * ATTAINED * 1e6, hardware.gflops * ATTAINED * 1e6
        self._operator_ms = (OPERATOR_US if hardware.operator_us is None else hardware.operator_us) / 1e3
        self._float32 = device.runtime is Runtime.onnxruntime
        self._context, self._text_tokens = context, text_tokens

    def predict(self, model: ModelConfig, sizes: Mapping[str, int]) -> Latency:
        found = graphs(model, context=self._context, text_tokens=self._text_tokens)
        elements = parameter_sizes(model)
        encode, prefill, token = (
            self._milliseconds(found.get(name, ()), elements, sizes) for name in (ENCODER, PREFILL, DECODE)
        )
        return Latency(encode, prefill, token)

    def _milliseconds(
        self, operators: Iterable[Operator], elements: Mapping[str, int], sizes: Mapping[str, int]
    ) -> float:
        total = 0.0
        for operator in operators:
            weights = sum(
                self._weight_bytes(operator, elements[name], sizes.get(name, 4 * elements[name]))
                for name in operator.weights
            )
            moved = weights + operator.activation_bytes * (1.0 if self._float32 else 0.5)
            total += max(operator.flops / self._flops_ms, moved / self._bytes_ms) + self._operator_ms
        return total

    def _weight_bytes(self, operator: Operator, elements: int, stored: int) -> int:
        if not self._float32:
            return stored
        codes = operator.name == "linear" and stored < 2 * elements
        return stored if codes else 4 * elements
