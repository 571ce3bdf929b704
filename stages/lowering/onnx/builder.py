"""An ONNX graph under construction: operators, constants, and weights, streamed into external data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from stages.lowering.graph import Constant, Weight
from stages.quantizers.store import QuantizedStore

OPSET, IR_VERSION = 21, 10
MICROSOFT = "com.microsoft"
_SMALL = 256  # bytes of a constant that stands in the graph itself
_PAGE, _LINE = 4096, 64  # alignment of tensors of a MiB and more (mapped by the runtime), and of smaller ones


Operand = ir.Value | Weight | Constant | None


def data_type(dtype: Any) -> ir.DataType:
    """ONNX's name of a torch dtype."""
    return ir.DataType.from_numpy(np.dtype(str(dtype).removeprefix("torch.")))


class GraphBuilder:
    """What an emitter is given as `context`. Use it in a `with`: weights go to a file at once.

    Values are onnx_ir.Value with their dtype set. Weights go to `<path>.data` at once and only their place stays in
    memory; no path is written but that file's name. accuracy_level: of MatMulNBits. context: rows of the rotary tables.
    unpack_weights: of products: "never", MatMulNBits reads their codes; "folded" or "dequantized": see unpacked.py.
    optional_inputs: an input may be one that a caller can leave out.
    """

    def __init__(
        self,
        path: Path,
        store: QuantizedStore,
        *,
        accuracy_level: int,
        context: int = 0,
        unpack_weights: str = "never",
        optional_inputs: bool = True,
    ):
        self.path, self.store = Path(path), store
        self.accuracy_level, self.context = accuracy_level, context
        self.unpack_weights, self.optional_inputs = unpack_weights, optional_inputs
        self.shared: dict[Any, Any] = {}  # what emitters remember of each other's values
        self.parameters: dict[str, Weight] = {}  # of the captured program, by placeholder
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.residuals: list[ir.Value] = []  # norms of a sum, to be fused with it
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._data_path = self.path.with_name(self.path.name + ".data")
        self._data = self._data_path.open("wb")

    def __enter__(self) -> "GraphBuilder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Where the lowering failed, leave nothing behind."""
        self._data.close()
        if kind is not None:
            for path in (self._data_path, self.path):
                path.unlink(missing_ok=True)

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    def optional_input(self, name: str, shape: Sequence[int | str], default: NDArray[Any]) -> ir.Value:
        """An input that a caller may leave out, and that then is `default`: an initializer that can be overridden.

        One like any other, where the graph is to have no optional inputs.
        """
        tensor = ir.tensor(default, name=name)
        if not self.optional_inputs:
            return self.input(name, tensor.dtype, shape)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor)
        self._initializers[name] = value
        return value

    def op(
        self,
        operator: str,
        *inputs: Operand,
        domain: str = "",
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Append a node of one output, and return that. dtype: of the output, if it is not the first input's."""
        return self.ops(1, operator, *inputs, domain=domain, dtype=dtype, **attributes)[0]

    def ops(
        self,
        outputs: int,
        operator: str,
        *inputs: Operand,
        domain: str = "",
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> list[ir.Value]:
        """Append a node of several outputs, all of one dtype."""
        values = [self.value(value) if isinstance(value, Weight | Constant) else value for value in inputs]
        node = ir.node(operator, values, attributes, domain=domain, num_outputs=outputs)
        for index, output in enumerate(node.outputs):
            output.name = f"{operator}_{len(self._nodes)}" + (f"_{index}" if index else "")
            output.type = ir.TensorType(dtype or values[0].dtype)  # type: ignore[union-attr, arg-type]
        self._nodes.append(node)
        return list(node.outputs)

    def constant(self, array: Any, dtype: type[np.generic] | str | None = None) -> ir.Value:
        """A small constant, kept in the graph itself; equal ones are one."""
        array = np.asarray(array, dtype)
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self._initializer(name, ir.tensor(array, name=name))
        return self._constants[key]

    def value(self, tensor: ir.Value | Weight | Constant) -> ir.Value:
        """A tensor as it is; a weight as float32 in its own shape; what the model's code made, as that stands there.

        The runtime computes a weight once, when it loads the model.
        """
        if isinstance(tensor, ir.Value):
            return tensor
        if isinstance(tensor, Constant):
            return self._made(tensor)
        from stages.lowering.onnx.weights import dense

        return dense(self, tensor)

    def operand(self, value: Any, like: ir.Value) -> ir.Value:
        """As `value`; a Python number becomes a constant of the dtype of `like`."""
        if isinstance(value, ir.Value | Weight | Constant):
            return self.value(value)
        assert like.dtype is not None
        return self.constant(value, like.dtype.numpy().type)

    def cast(self, tensor: ir.Value | Weight | Constant, dtype: ir.DataType) -> ir.Value:
        """As `value`, in that dtype."""
        value = self.value(tensor)
        return value if value.dtype == dtype else self.op("Cast", value, dtype=dtype, to=dtype.value)

    def call(self, node: Any, emitter: Any, arguments: Any, keywords: Any) -> Any:
        """One emitter's turn: what the model's code made comes to it as a value, but a Weight as it is."""

        def made(item: Any) -> Any:
            if isinstance(item, list | tuple):
                return [made(part) for part in item]
            return self.value(item) if isinstance(item, Constant) else item

        return emitter(self, node, *made(list(arguments)), **{name: made(item) for name, item in keywords.items()})

    def _made(self, constant: Constant) -> ir.Value:
        if constant.array.nbytes <= _SMALL:
            return self.constant(constant.array)
        if ("made", constant.name) not in self.shared:
            dtype = ir.DataType.from_numpy(constant.array.dtype)
            self.shared["made", constant.name] = self.stored(
                f"made.{constant.name}", constant.array, dtype, constant.array.shape
            )
        return self.shared["made", constant.name]

    def stored(self, name: str, array: NDArray[Any], dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """An initializer over these bytes, packed already where dtype has under 8 bits, appended to the data."""
        place = self.append(array)
        return self.placed(name, place, dtype, shape)

    def append(self, *arrays: NDArray[Any]) -> tuple[int, int]:
        """Append the bytes of arrays, one behind the other, to the external data; returns offset and length."""
        length = sum(array.nbytes for array in arrays)
        alignment = _PAGE if length >= 1 << 20 else _LINE
        self._data.write(b"\0" * (-self._data.tell() % alignment))
        offset = self._data.tell()
        for array in arrays:
            self._data.write(np.ascontiguousarray(array).data)
        return offset, length

    def placed(self, name: str, place: tuple[int, int], dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """An initializer over bytes that were appended before; several may share them in different shapes."""
        offset, length = place
        location = self.path.name + ".data"
        tensor = ir.ExternalTensor(location, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir="")
        return self._initializer(name, tensor)

    def replace(self, old: ir.Node, new: ir.Node) -> None:
        """Put new where old stands. The caller moves the uses of its outputs."""
        self._nodes[self._nodes.index(old)] = new

    def move_to_end(self, node: ir.Node) -> None:
        """Let node run after what was appended since. Nothing appended so far may read its outputs."""
        self._nodes.remove(node)
        self._nodes.append(node)

    def save(
        self, name: str, inputs: Sequence[ir.Value], outputs: dict[str, tuple[ir.Value, Sequence[int | str]]]
    ) -> None:
        """Write the model. outputs: name -> value and shape. What no output needs is left out."""
        self._data.close()
        results = []
        for label, (value, shape) in outputs.items():
            if value.name in outputs or value in inputs:
                value = self.op("Identity", value)
            value.name, value.shape = label, ir.Shape(shape)
            results.append(value)
        nodes = self._live(results)
        used = {id(value) for node in nodes for value in node.inputs if value is not None}
        initializers = [value for value in self._initializers.values() if id(value) in used]
        graph = ir.Graph(
            list(inputs),
            results,
            nodes=nodes,
            initializers=initializers,
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=name,
        )
        for index, node in enumerate(graph):
            node.name = f"{node.op_type}_{index}"
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="tapeout", producer_version="1")
        proto = ir.to_proto(model)
        del proto.graph.value_info[:]  # the runtime infers it; it was a quarter of the file
        self.path.write_bytes(proto.SerializeToString(deterministic=True))

    def _live(self, results: list[ir.Value]) -> list[ir.Node]:
        needed, kept = {id(value) for value in results}, []
        for node in reversed(self._nodes):
            if any(id(output) in needed for output in node.outputs):
                needed.update(id(value) for value in node.inputs if value is not None)
                kept.append(node)
        return kept[::-1]

    def _initializer(self, name: str, tensor: Any) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self._initializers[name] = value
        return value
