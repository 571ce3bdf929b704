"""Calibration in the memory of one piece of the model: forward through the pieces, then backward through them.

What each piece takes, and the gradient of what it gives, lies in files, one a sequence; a piece's statistics are
written when all sequences went through it. A run that was killed goes on behind the last piece that was finished, with
the same result. The backward pass runs each piece anew, a sequence at a time: no graph is larger than a piece's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import StageError
from stages.artifacts import Checkpoint
from stages.quantizers.clock import Clock, Report
from stages.quantizers.examples import Sample
from stages.quantizers.layers import quantizable_layers
from stages.quantizers.streaming_gradients import backward
from stages.quantizers.streaming_moments import forward
from stages.quantizers.streaming_pieces import check_kind, pieces_of
from stages.quantizers.streaming_state import Passage, Tensors, Workers, device_of, exact_products
from stages.schema import CalibrateConfig
from stages.tensorfile import PlannedWriter, TensorReader, read_header


def measure(
    checkpoint: Checkpoint, samples: Sequence[Sample], config: CalibrateConfig, scratch: Path, report: Report
) -> list[Path]:
    """Statistics of the float32 model on the samples, in files under scratch, whose tensors are named as Calibration's.

    Where two hold the same tensor, the later one counts. Raises StageError for no samples, and for activations or
    gradients that are not finite, naming the layer.
    """
    if not samples:
        raise StageError("the calibration set is empty", hint="Set calibrate.samples to 1 or more; 512 is usual.")
    check_kind(checkpoint)
    with exact_products(), Workers(config.threads) as workers:
        passage = _passage(checkpoint, samples, config, scratch, report, workers)
        order = range(len(passage.pieces))
        files = [forward(passage, index) for index in order]
        if config.fisher:
            files += [backward(passage, index) for index in reversed(order) if passage.concerned(passage.pieces[index])]
    return files


def _passage(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    config: CalibrateConfig,
    scratch: Path,
    report: Report,
    workers: Workers,
) -> Passage:
    with torch.device("meta"):
        model: Any = checkpoint.config().build()
    pieces, clock = pieces_of(model), Clock(report)
    hidden, gradients = Tensors(scratch / "hidden"), Tensors(scratch / "gradients")
    layers, device = quantizable_layers(model), device_of()
    passage = Passage(
        checkpoint, model, layers, pieces, samples, config, scratch, hidden, gradients, workers, device, clock
    )
    ways = (False, True) if config.fisher else (False,)
    clock.total = sum(
        len(passage.concerned(piece)) * passage.cost(index, back) for index, piece in enumerate(pieces) for back in ways
    )
    return passage


def write_statistics(path: Path, files: Sequence[Path]) -> None:
    """Join the files that measure left in one, a tensor at a time."""
    places = {name: file for file in files for name in read_header(file)}
    entries = {name: read_header(file)[name] for name, file in places.items()}
    with PlannedWriter(path, {name: (entry.dtype, entry.shape) for name, entry in entries.items()}) as writer:
        for name in writer.order():
            writer.write(name, TensorReader(places[name]).array(name).tobytes())
