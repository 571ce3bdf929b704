"""probe: the weights as they will be shipped, run in torch on a few inputs, as a Probe."""

import torch

from pipelines.workspace import Workspace
from stages.artifacts import Probe, QuantizedModel
from stages.evaluation.probing import probe_language, probe_module
from stages.schema import ProbeConfig


def probe(model: QuantizedModel, config: ProbeConfig, work: Workspace) -> Probe:
    """The range of each operator's values, and what the runtimes are held against.

    Weights are read one at a time, so that a model of any size needs little memory. Raises StageError for an image that
    cannot be read, and for values that are not finite, naming the line of the model.
    """
    torch.set_num_threads(config.threads)
    result = Probe(work.out)
    run = probe_module if model.config().module else probe_language
    run(model, config, result, work.progress)
    return result
