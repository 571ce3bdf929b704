"""Run by its path in a process of its own: a session of ONNX Runtime, which writes a context binary and ends.

    python hexagon_session.py MODEL.onnx CONTEXT.onnx SOC_MODEL HTP_ARCHITECTURE

QNN's libraries keep gigabytes, print what they like and may end the process; none of that reaches the stage. The last
line of standard output is a JSON object: {"error": text or null, "left": [operators that were left to the CPU]}.
MODEL is relative to the working folder: ONNX Runtime hashes its path, as given, into names inside the binary.
"""

import json
import sys
from typing import Any

_ERRORS_ONLY = 3
_PROVIDER = "QNNExecutionProvider"


def main(model: str, context: str, soc_model: str, architecture: str) -> dict[str, Any]:
    """Compile; where that fails, find out which nodes Hexagon does not take, with a session that writes nothing."""
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    compiler = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "soc_model": soc_model,
        "htp_arch": architecture,
        "enable_htp_fp16_precision": "1",
        "htp_graph_finalization_optimization_mode": "3",  # the longest search, of 0 to 3
    }

    def session(entries: dict[str, str]) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == _PROVIDER]
        options.add_provider_for_devices(devices[:1], compiler)
        return onnxruntime.InferenceSession(model, options)

    try:
        session(
            {
                "ep.context_enable": "1",
                "ep.context_file_path": context,
                "ep.context_embed_mode": "0",  # the binary beside the ONNX file, which a phone can map
                "session.disable_cpu_ep_fallback": "1",
            }
        )
    except Exception as error:  # the runtime's own errors have no public base
        placed = session({"session.record_ep_graph_assignment_info": "1"}).get_provider_graph_assignment_info()
        left = [node.op_type for group in placed if group.ep_name != _PROVIDER for node in group.get_nodes()]
        return {"error": str(error), "left": left}
    return {"error": None, "left": []}


if __name__ == "__main__":
    print("\n" + json.dumps(main(*sys.argv[1:])))
