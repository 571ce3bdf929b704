"""Opens a device model with the runtime that its model.json names; each is imported only when needed."""

from stages.artifacts import DeviceModel
from stages.runtimes.session import GraphSession, LanguageSession


def open_session(model: DeviceModel, threads: int = 1) -> LanguageSession:
    """A language model: Core ML packages in the reference executor, which takes torch's threads; ONNX files in ONNX
    Runtime, on `threads`."""
    if model.description()["runtime"] == "coreml":
        from stages.runtimes.coreml_reference import CoreMLSession

        return CoreMLSession(model)
    from stages.runtimes.ort import OnnxSession

    return OnnxSession(model, threads)


def open_graph(model: DeviceModel, threads: int = 1) -> GraphSession:
    """A user's module."""
    if model.description()["runtime"] == "coreml":
        from stages.runtimes.coreml_reference import CoreMLGraph

        return CoreMLGraph(model)
    from stages.runtimes.ort import OnnxGraph

    return OnnxGraph(model, threads)
