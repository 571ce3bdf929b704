"""onnxruntime's MatMulNBitsQuantizer. Run by `quantization.child`.

It quantizes constant weights of MatMul, each by itself; so every matrix of the model gets a MatMul of its own in one
ONNX graph, and for GPTQ the inputs that calibration gives that layer. `dense` is what MatMulNBits computes in ONNX
Runtime, with scales (and HQQ's zero points) rounded to float16, as in a float16 model. In the whole model it covers the
linear layers; embeddings and convolutions stay float. Its k_quant and GPTQ cannot pack the zero points of a weight with
an odd number of blocks, which have RTN instead.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from quantization.packed import Packed
from quantization.subject import HEAD, Answering, calibration_together, checkpoint, kinds

AT_ONCE = 6  # weights in a graph, so that GPTQ's inputs fit in memory


def run(settings: dict[str, Any]) -> Packed:
    """settings: algorithm (rtn, hqq, k_quant, gptq), bits, block, symmetric; gptq: order (activation order), mse."""
    model = Answering(checkpoint().model()).eval()
    names = sorted(kinds(model.model).matrices | {HEAD})
    result = Packed()
    odd = [name for name in names if -(-model.model.get_parameter(name).shape[1] // settings["block"]) % 2]
    plan = [(odd, {**settings, "algorithm": "rtn"})] if settings["algorithm"] in ("k_quant", "gptq") and odd else []
    usual = [name for name in names if not plan or name not in odd]
    plan += [(usual[start : start + AT_ONCE], settings) for start in range(0, len(usual), AT_ONCE)]
    for part, chosen in plan:
        weights = {name: model.model.get_parameter(name).detach().flatten(1).numpy() for name in part}
        for name, values, arrays in _quantized(weights, model, chosen):
            result.add(name, values.reshape(model.model.get_parameter(name).shape), **arrays)
            if isinstance(model.model.get_submodule(name.removesuffix(".weight")), nn.Linear):
                result.native.append(name)
    return result


def _quantized(
    weights: dict[str, NDArray[np.float32]], model: Answering, settings: dict[str, Any]
) -> Iterator[tuple[str, NDArray[np.float32], dict[str, NDArray[Any]]]]:
    """Each weight's name, its dequantized values (out, in), and its arrays."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    inputs = _Inputs(model, list(weights)) if settings["algorithm"] == "gptq" else None
    configs = {
        "rtn": lambda: nbits.DefaultWeightOnlyQuantConfig(
            block_size=settings["block"], is_symmetric=settings["symmetric"], bits=settings["bits"]
        ),
        "hqq": lambda: nbits.HQQWeightOnlyQuantConfig(block_size=settings["block"], bits=settings["bits"]),
        "k_quant": lambda: nbits.KQuantWeightOnlyQuantConfig(),
        "gptq": lambda: nbits.GPTQWeightOnlyQuantConfig(
            inputs, actorder=settings.get("order", False), mse=settings.get("mse", False)
        ),
    }
    quantizer = nbits.MatMulNBitsQuantizer(
        _graph(weights),
        bits=settings["bits"],
        block_size=settings["block"],
        is_symmetric=settings["symmetric"],
        algo_config=configs[settings["algorithm"]](),
    )
    quantizer.process()
    made = quantizer.model.model
    made.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    initializers = {tensor.name: tensor for tensor in made.graph.initializer}
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    for node in made.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        name = node.output[0].removeprefix("y:")
        arrays[name] = {}
        for part, source in zip(("codes", "scale", "zero_point"), node.input[1:], strict=False):
            array = onnx.numpy_helper.to_array(initializers[source])
            if array.dtype == np.float32:
                array = array.astype(np.float16)
                initializers[source].CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), source))
            arrays[name][part] = array
    missing = weights.keys() - arrays.keys()
    if missing:
        raise ValueError(f"left float: {', '.join(sorted(missing))}")
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {f"x:{name}": np.eye(weight.shape[1], dtype=np.float32) for name, weight in weights.items()}
    for name in weights:
        (values,) = session.run([f"y:{name}"], feeds)
        yield name, np.ascontiguousarray(values.T), arrays[name]


def _graph(weights: dict[str, NDArray[np.float32]]) -> Any:
    """y:NAME = MatMul(x:NAME, NAME) for each weight. The input goes through Identity: GPTQ asks for it as an output."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, inputs, outputs, initializers = [], [], [], []
    for name, weight in weights.items():
        rows, columns = weight.shape
        inputs.append(helper.make_tensor_value_info(f"x:{name}", TensorProto.FLOAT, [None, columns]))
        outputs.append(helper.make_tensor_value_info(f"y:{name}", TensorProto.FLOAT, [None, rows]))
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), name))
        nodes.append(helper.make_node("Identity", [f"x:{name}"], [f"i:{name}"], name=f"i:{name}"))
        nodes.append(helper.make_node("MatMul", [f"i:{name}", name], [f"y:{name}"], name=name))
    graph = helper.make_graph(nodes, "weights", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


class _Inputs:
    """onnxruntime's CalibrationDataReader: what calibration gives each of these layers, batch by batch."""

    def __init__(self, model: Answering, names: list[str]):
        self.batches: list[dict[str, NDArray[np.float32]]] = []
        hooks = []
        for name in names:
            module = model.model.get_submodule("text.norm" if name == HEAD else name.removesuffix(".weight"))

            def seen(module: nn.Module, given: Any, output: Any, name: str = name) -> None:
                x = output if name == HEAD else given[0]
                x = x.permute(0, 2, 3, 1) if isinstance(module, nn.Conv2d) else x
                self.batches[-1][f"x:{name}"] = x.reshape(-1, x.shape[-1]).numpy()

            hooks.append(module.register_forward_hook(seen))
        with torch.no_grad():
            for batch in calibration_together():
                self.batches.append({})
                model(batch.pixels, batch.ids)
        for hook in hooks:
            hook.remove()

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        return iter(self.batches)
