"""From portable .onnx files to what a device loads: the .ort format, and weights laid out for the processor ahead.

ONNX Runtime lays quantized weights out anew ("prepacking") whenever it loads a model, and holds that copy in memory.

    load    it does so; the fastest, and the default
    off     it does not: half of the memory after loading, and each product unpacks its whole weight first, which is
            over fifty times slower a token, and takes a float32 copy of the largest weight for that time
    saved   the laid out weights are written into the file, which is mapped: a third less memory, a quicker start, twice
            the file. They fit the kind of processor that the build ran on, and no other
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

from pipelines.errors import LoweringError, suggestion
from stages.lowering.onnx.decoder import PAST
from stages.lowering.onnx.ort_format import sort_head
from stages.runtimes.processor import check_machine, machine

FORMATS = ("onnx", "ort")
PREPACKING = ("load", "off", "saved")
_LARGEST_ORT = 2**31 - 1  # a flatbuffer's offsets are signed, of 32 bits
_WARNINGS, _ERRORS_ONLY = 2, 3
_OPERATORS = "required_operators.config"
_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def deploy(paths: Sequence[Path], *, format: str, prepacking: str, architecture: str | None) -> None:
    """Bring the .onnx files at paths, all in one folder, into the form asked for, in their place.

    architecture: the device's processor, "arm64" or "x86_64"; None: this machine's. With format "ort" there is also
    required_operators.config: what a reduced build of the runtime takes as --include_ops_by_config.
    Raises LoweringError for a choice that does not exist, or that ONNX Runtime does not compute right.
    """
    for value, known, title in ((format, FORMATS, "format"), (prepacking, PREPACKING, "prepacking")):
        if value not in known:
            raise LoweringError(f"ONNX Runtime has no {title} '{value}'", hint=suggestion(value, known, title))
    if prepacking == "saved":
        check_machine(architecture or machine())
        if format == "ort":
            raise LoweringError(
                "the .ort format holds no saved prepacked weights", hint="Choose format=onnx, or prepacking=load."
            )
        for path in paths:
            _save_prepacked(path)
    if format == "ort":
        _to_ort(paths)


def session_options(prepacking: str) -> dict[str, str]:
    """Configuration entries that a session of such files needs."""
    return {"session.disable_prepacking": "1"} if prepacking == "off" else {}


def _save_prepacked(path: Path) -> None:
    """Load path's model and let the runtime write it out as it lies in memory; checked against the one before."""
    saved = path.with_name(f"prepacked.{path.name}")
    data = Path(f"{path}.data")
    entries = {
        "session.optimized_model_external_initializers_file_name": f"{data.name}.prepacked",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1",
    }
    expected = _first_step(_session(path, entries, saved))
    found = _first_step(_session(saved, {}))
    packed = data.with_name(f"{data.name}.prepacked")
    if not all(np.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(found, expected, strict=True)):
        for left in (saved, packed):
            left.unlink(missing_ok=True)
        raise LoweringError(
            f"ONNX Runtime {onnxruntime.__version__} computes other numbers from {path.name} with saved prepacked "
            "weights than without",
            hint="It is so with accuracy_level=4 in 1.31. Choose accuracy_level=1, or prepacking=load.",
        )
    model = onnx.load(saved, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    for index, node in enumerate(model.graph.node):  # the runtime names its own after the order of a hash table
        node.name = f"{node.op_type}_{index}"
    path.write_bytes(model.SerializeToString(deterministic=True))
    packed.replace(data)
    saved.unlink()


def _session(path: Path, entries: dict[str, str], saved: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = 1
    if saved:
        options.optimized_model_filepath = str(saved)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _first_step(session: onnxruntime.InferenceSession) -> list[NDArray[Any]]:
    """What the model gives for ones: one token, where sizes vary, against an empty cache."""
    inputs = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else int(size != PAST) for size in value.shape]
        inputs[value.name] = np.ones(shape, _NUMPY_TYPES[value.type])
    return [np.asarray(output) for output in session.run(None, inputs)]


def _to_ort(paths: Sequence[Path]) -> None:
    """By the runtime's own tool: optimizations that fit any processor, weights inside the file."""
    for path in paths:
        size = sum(part.stat().st_size for part in (path, Path(f"{path}.data")))
        if size > _LARGEST_ORT:
            raise LoweringError(
                f"{path.stem} is {size:,} bytes; a file in .ort format holds at most {_LARGEST_ORT:,}",
                hint="Choose format=onnx, or fewer bits.",
            )
    with _quiet():
        convert_onnx_models_to_ort(
            paths[0].parent, optimization_styles=[OptimizationStyle.Fixed], target_platform="arm"
        )
    for path in paths:
        sort_head(path.with_suffix(".ort"))
        path.unlink()
        Path(f"{path}.data").unlink()
    operators = paths[0].with_name(_OPERATORS)
    lines = operators.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("#")]  # comments hold the folder's path
    operators.write_text("\n".join([f"# {', '.join(sorted(path.stem for path in paths))}", *kept]) + "\n")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tool prints what it does, and the runtime that an input has a default."""
    logging.disable(logging.INFO)
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        onnxruntime.set_default_logger_severity(_WARNINGS)
