"""Opens a device model with the runtime that its model.json names."""

from stages.artifacts import DeviceModel
from stages.runtimes.session import VisionLanguageSession


def open_session(model: DeviceModel) -> VisionLanguageSession:
    """Core ML packages run in the reference executor, ONNX files in ONNX Runtime; each is imported only when needed."""
    if model.description()["runtime"] == "coreml":
        from stages.runtimes.coreml_reference import CoreMLSession

        return CoreMLSession(model)
    from stages.runtimes.ort import OnnxSession

    return OnnxSession(model)
