"""Run by its path in a process of its own: a session of ONNX Runtime with QNN, to compile a model or to run a context.

    python hexagon_session.py compile MODEL.onnx CONTEXT.onnx SOC_MODEL HTP_ARCHITECTURE
    python hexagon_session.py run CONTEXT.onnx INPUTS.npz OUTPUTS.npz

QNN's libraries keep gigabytes, print what they like and may end the process; none of that reaches the stage. The last
line of standard output is a JSON object: {"error": text or null, "left": [operators that were left to the CPU]}.
MODEL is relative to the working folder: ONNX Runtime hashes its path, as given, into names inside the binary.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

_ERRORS_ONLY = 3
_PROVIDER = "QNNExecutionProvider"


def compile_model(model: str, context: str, soc_model: str, architecture: str) -> dict[str, Any]:
    """Compile; where that fails, find out which nodes Hexagon does not take, with a session that writes nothing."""
    chip = {
        "enable_htp_fp16_precision": "1",
        "soc_model": soc_model,
        "htp_arch": architecture,
        "htp_graph_finalization_optimization_mode": "3",  # the longest search, of 0 to 3
    }
    written = {
        "ep.context_enable": "1",
        "ep.context_file_path": context,
        "ep.context_embed_mode": "0",  # the binary beside the ONNX file, which a phone can map
        "session.disable_cpu_ep_fallback": "1",
    }
    try:
        _session(model, chip, written)
    except Exception as error:  # the runtime's own errors have no public base
        placed = _session(model, chip, {"session.record_ep_graph_assignment_info": "1"})
        groups = placed.get_provider_graph_assignment_info()
        left = [node.op_type for group in groups if group.ep_name != _PROVIDER for node in group.get_nodes()]
        return {"error": str(error), "left": left}
    return {"error": None, "left": []}


def run_context(context: str, inputs: str, outputs: str) -> dict[str, Any]:
    """Run a context on this machine: QNN emulates the Hexagon where there is none."""
    import numpy

    session = _session(context, {}, {"session.disable_cpu_ep_fallback": "1"})
    with numpy.load(inputs) as values:
        results = session.run(None, dict(values))
    numpy.savez(outputs, **{value.name: array for value, array in zip(session.get_outputs(), results, strict=True)})
    return {"error": None, "left": []}


def _session(model: str, chip: Mapping[str, str], entries: Mapping[str, str]) -> Any:
    import onnxruntime
    import onnxruntime_qnn

    if _PROVIDER not in {device.ep_name for device in onnxruntime.get_ep_devices()}:
        onnxruntime.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == _PROVIDER]
    options.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **chip})
    return onnxruntime.InferenceSession(model, options, enable_fallback=0)  # else it tries the CPU, and tells of that


if __name__ == "__main__":
    chosen = {"compile": compile_model, "run": run_context}[sys.argv[1]]
    print("\n" + json.dumps(chosen(*sys.argv[2:])))
