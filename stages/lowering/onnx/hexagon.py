"""Hexagon: an ONNX file compiled here, without a phone, into the context binary that one chip's NPU loads.

onnxruntime-qnn (the extra `tapeout[qnn]`; Linux x86-64) does it. Its session "succeeds" where nodes were left to the
CPU, and leaves files where it failed; so what counts is read from the files. Its emulation of the Hexagon then runs
the very binary that ships.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch.export import ExportedProgram

from pipelines.errors import LoweringError
from stages.lowering.capture import capture_encoder
from stages.lowering.graph import source_line
from stages.lowering.onnx import hexagon_session, lower_program
from stages.lowering.onnx.builder import MICROSOFT
from stages.lowering.socs import Soc, find_soc, soc_problem
from stages.models.vlm import ModelConfig
from stages.quantizers.store import QuantizedStore, TensorFormat

COMPILER, VERSION = "onnxruntime-qnn", "2.7.0"  # another version writes other bytes: it is part of this code's identity
PROVIDER = "QNNExecutionProvider"
_WIDE = "weights and activations as QuantizeLinear and DequantizeLinear of 8 and 16 bits, with calibrated ranges"
UNCOMPILED = {  # operators that it leaves to the CPU, and what it would take instead
    "MatMulNBits": _WIDE,
    "GatherBlockQuantized": "the table in 8 bits per tensor, or the lookup left to the CPU",
    "GroupQueryAttention": "the standard Attention (opset 23) over a cache of fixed size",
    "SkipSimplifiedLayerNormalization": "an Add and an RMSNormalization (opset 23)",
    "SimplifiedLayerNormalization": "an RMSNormalization (opset 23)",
}
_LARGEST = 65504.0  # of float16
_TO_CPU = "Without QNNExecutionProvider in the profile's execution_providers it runs on the CPU, in float32."


def compile_encoder(
    config: ModelConfig,
    store: QuantizedStore,
    out: Path,
    chip: str,
    ranges: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Write encoder.hexagon.onnx and its binary into the folder out; returns what compile_context does.

    The weights are the store's, dequantized and rounded to float16, in which the Hexagon computes all of it.
    ranges: {"encoder": {node of the captured graph: largest |value|}}, as the probe found them; None leaves them
    unchecked. Raises LoweringError where a weight or a value is beyond float16, and as compile_context does.
    """
    _chip(chip)
    program = capture_encoder(config)
    _check_ranges(program, (ranges or {}).get("encoder", {}))
    with tempfile.TemporaryDirectory(prefix="hexagon-", dir=out) as name:
        path = Path(name) / "encoder.onnx"
        lower_program(program, _Float16Store(store), path, outputs=["features"], accuracy_level=0)
        return compile_context(path, out / "encoder.hexagon.onnx", chip)


def compile_context(model: Path, out: Path, chip: str) -> dict[str, Any]:
    """Compile the ONNX file `model` for a chip, by its name or part number: out, an ONNX file of EPContext nodes, and
    beside it the binary that it names. The same model gives the same bytes in any folder.

    Returns {"file", "context", "bytes", "soc", "architecture", "provider", "compiler"}; bytes: of the binary.
    Raises LoweringError for a chip or an operator that cannot be compiled, where the compiler is not installed, where
    it fails, and where its result is not whole; then nothing is left at out.
    """
    soc = _chip(chip)
    _check_compiler()
    _check_model(model)
    with tempfile.TemporaryDirectory(prefix="hexagon-", dir=out.parent) as name:
        context = Path(name).resolve() / out.name
        _compile(model, context, soc)
        binary = _check_result(context, model)
        for path in (binary, context):
            path.replace(out.parent / path.name)
    return {
        "file": out.name,
        "context": binary.name,
        "bytes": (out.parent / binary.name).stat().st_size,
        "soc": soc.part,
        "architecture": soc.architecture,
        "provider": PROVIDER,
        "compiler": f"{COMPILER} {VERSION}",
    }


def run_context(context: Path, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run what compile_context wrote, on this machine: name -> array of each input, returns the same of each output.

    QNN emulates the Hexagon where there is none (Linux x86-64): its float16, from the very binary that ships. Only its
    speed says nothing: a tower of 1,024 pixels takes it many minutes. Raises LoweringError where it fails.
    """
    _check_compiler()
    with tempfile.TemporaryDirectory(prefix="hexagon-") as name:
        given, found = Path(name) / "inputs.npz", Path(name) / "outputs.npz"
        np.savez(given, **dict(inputs))
        _session(context, "run", context.name, given, found)
        with np.load(found) as arrays:
            return dict(arrays)


def _chip(chip: str) -> Soc:
    problem, soc = soc_problem(chip), find_soc(chip)
    if problem or soc is None:
        raise LoweringError(problem[0] if problem else chip, hint=problem[1] if problem else "")
    return soc


def _check_ranges(program: ExportedProgram, ranges: Mapping[str, float]) -> None:
    """Nothing here can compute a layer wider, as Core ML's lowering does: what does not fit is named."""
    beyond = [node for node in program.graph.nodes if ranges.get(node.name, 0) > _LARGEST]
    if not beyond:
        return
    worst = max(beyond, key=lambda node: ranges[node.name])
    raise LoweringError(
        f"{len(beyond)} of the encoder's layers leave float16, in which the Hexagon computes: up to "
        f"{ranges[worst.name]:,.0f} of {_LARGEST:,.0f}, from {source_line(worst)}",
        hint=f"{_TO_CPU} Or scale the weights before that layer.",
    )


def _check_compiler() -> None:
    try:
        found = metadata.version(COMPILER)
    except metadata.PackageNotFoundError:
        found = None
    if found != VERSION:
        raise LoweringError(
            f"a context binary needs {COMPILER} {VERSION}; " + (f"found {found}" if found else "it is not installed"),
            hint=f"pip install 'tapeout[qnn]' (Linux x86-64). {_TO_CPU}",
        )


def _check_model(model: Path) -> None:
    """What is known not to compile is said before the compiler spends its minute, with what it would take."""
    graph = onnx.load(model, load_external_data=False).graph
    varying = sorted(
        {
            f"{value.name} ({size.dim_param})"
            for value in graph.input
            for size in value.type.tensor_type.shape.dim
            if size.dim_param
        }
    )
    found = Counter(node.op_type for node in graph.node if node.op_type in UNCOMPILED)
    if not varying and not found:
        return
    problems = [f"{count} {operator}" for operator, count in sorted(found.items())]
    if varying:
        problems.append(f"sizes that vary: {', '.join(varying[:3])}{' and more' if varying[3:] else ''}")
    needs = [f"{operator}: {UNCOMPILED[operator]}" for operator in sorted(found)]
    if varying:
        needs.append("sizes: a graph for each number of tokens")
    raise LoweringError(
        f"{model.name} cannot be compiled for Hexagon; it has {', '.join(problems)}",
        hint=f"Leave it to the CPU. What compiling it would take: {'; '.join(needs)}.",
    )


def _compile(model: Path, context: Path, soc: Soc) -> None:
    """In a process of its own, in the model's folder: its path would go into the bytes."""
    found = _session(model, "compile", model.name, context, soc.model, soc.architecture)
    if found["left"]:
        raise _left_to_cpu(model, found["left"])
    if found["error"]:
        raise _failed(model, found["error"])


def _session(model: Path, *words: str | int | Path) -> dict[str, Any]:
    command = [sys.executable, hexagon_session.__file__, *map(str, words)]
    done = subprocess.run(command, cwd=model.parent, capture_output=True, text=True)
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise _failed(model, told[-1])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _check_result(context: Path, model: Path) -> Path:
    """The binary that context names. Both must be whole, and hold all of the model."""
    if not context.is_file():
        raise _failed(model, "it ended without an error and wrote no file")
    nodes = onnx.load(context, load_external_data=False).graph.node
    left = [node.op_type for node in nodes if (node.domain, node.op_type) != (MICROSOFT, "EPContext")]
    if left:
        raise _left_to_cpu(model, left)
    attributes = [attribute for node in nodes for attribute in node.attribute if attribute.name == "ep_cache_context"]
    names = sorted({attribute.s.decode() for attribute in attributes})
    binary = context.parent / names[0] if len(names) == 1 and Path(names[0]).name == names[0] else None
    if binary is None or not binary.is_file() or not binary.stat().st_size:
        raise _failed(model, f"of the one binary beside {context.name} it wrote: {', '.join(names) or 'nothing'}")
    return binary


def _left_to_cpu(model: Path, operators: list[str]) -> LoweringError:
    names = ", ".join(f"{count} {operator}" for operator, count in sorted(Counter(operators).items()))
    return LoweringError(
        f"{model.name}: {len(operators)} nodes would be left to the CPU by the Hexagon compiler: {names}",
        hint=f"Write them with operators that QNN has: onnxruntime-qnn's documentation lists them. {_TO_CPU}",
    )


def _failed(model: Path, told: str) -> LoweringError:
    return LoweringError(
        f"{model.name} cannot be compiled for Hexagon or run there: {told}",
        hint=_TO_CPU,
    )


class _Float16Store(QuantizedStore):
    """The same weights, each as the float16 nearest to what its stored bits mean."""

    def __init__(self, store: QuantizedStore):
        self._store, self.path = store, store.path

    def names(self) -> list[str]:
        return self._store.names()

    def format(self, name: str) -> TensorFormat:
        form = self._store.format(name)
        return TensorFormat("float", form.shape, 2 * form.rows * form.columns, dtype="float16")

    def float(self, name: str) -> NDArray[Any]:
        values = self._store.dense(name)
        largest = np.abs(values).max(initial=0)
        if largest > _LARGEST:
            raise LoweringError(
                f"weight '{name}' reaches {largest:,.0f}; the Hexagon computes in float16, up to {_LARGEST:,.0f}",
                hint=_TO_CPU,
            )
        return values.astype(np.float16)

    def dense(self, name: str) -> NDArray[np.float32]:
        return self.float(name).astype(np.float32)
