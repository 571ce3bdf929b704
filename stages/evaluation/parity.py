"""A runtime's numbers against torch's, from the same quantized weights: what conversion and arithmetic have changed."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.errors import StageError
from stages.artifacts import DeviceModel, Probe, QuantizedModel
from stages.evaluation.difference import Difference
from stages.runtimes.generate import image_rows
from stages.runtimes.opening import open_graph, open_session
from stages.runtimes.session import LanguageSession
from stages.tensorfile import TensorReader

Report = Callable[[float, float, str], None]
_CHUNK = 128  # tokens compared at a time: a row of logits has as many numbers as the vocabulary has words
_STEPS = 6  # of the last tokens, one at a time: the decode function


def measure_parity(
    model: QuantizedModel, probe: Probe, device_model: DeviceModel, threads: int, report: Report
) -> dict[str, Any]:
    """top1: the share of the `tokens` teacher-forced positions at which both find the same token most likely (of a
    module: of rows of its outputs, the same largest element). error: the root mean square difference of the logits (its
    outputs) over their spread. features_error: the same of the visual tokens, where there is a tower.

    The runtime encodes the image itself, reads the prompt and most of the text in chunks, and the rest step by step.
    """
    if model.config().module:
        return _module_parity(probe, device_model, threads)
    values = TensorReader(probe.values)
    session = open_session(device_model, threads)
    ids, hidden = values.array("ids"), values.array("hidden")
    count = min(len(ids), int(session.description["context"]))
    first = probe.prompt() - 1  # the first position whose next token was not part of the prompt
    if count - first < _STEPS:
        raise StageError(
            f"the prompt of {first + 1} tokens leaves no room in the context of {count} to compare answers",
            hint="Set convert.context to hold the prompt and probe.tokens.",
        )
    found: dict[str, Any] = {}
    rows = None
    if "features" in values.entries:
        expected = values.array("features")
        features = session.encode(values.array("pixels"))
        session.release_encoder()
        found["features_error"] = Difference().add(expected, features).relative()
        rows = image_rows(session, ids[: probe.prompt()].tolist(), features)
    difference, same, total = Difference(), 0, 0
    for start, logits in _run(session, ids[:count], rows, report):
        skipped = max(first - start, 0)
        if skipped >= len(logits):
            continue
        part = hidden[start + skipped : start + len(logits)]
        reference = _logits(model, part)
        difference.add(reference, logits[skipped:])
        same += int((reference.argmax(1) == logits[skipped:].argmax(1)).sum())
        total += len(part)
    return {**found, "top1": same / total, "tokens": total, "error": difference.relative()}


def _run(
    session: LanguageSession, ids: NDArray[np.int32], rows: NDArray[np.float32] | None, report: Report
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(number of the first token, logits (N, V)) of each call."""
    cache, width = session.start(), int(session.description["hidden"])
    features = np.zeros((len(ids), width), np.float32)
    if rows is not None:
        features[: len(rows)] = rows[: len(ids)]
    chunk = min(session.chunk or _CHUNK, _CHUNK)
    last = len(ids) - _STEPS
    for start in range(0, last, chunk):
        report(start, len(ids), "tokens")
        stop = min(start + chunk, last)
        yield start, session.step(ids[start:stop].tolist(), features[start:stop], start, cache)
    singles = (
        session.step(ids[row : row + 1].tolist(), features[row : row + 1], row, cache) for row in range(last, len(ids))
    )
    yield last, np.concatenate(list(singles))


def _logits(model: QuantizedModel, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    """The output head in torch: hidden (N, D) -> (N, V)."""
    text = model.config().text
    assert text is not None
    *inner, last = text.head_weights
    store, states = model.store(), torch.from_numpy(np.array(hidden))
    for name in inner:
        states = states @ torch.from_numpy(store.dense(name)).T
    logits = np.empty((len(hidden), text.vocab_size), np.float32)
    for start, weight in store.dense_blocks(last):
        logits[:, start : start + len(weight)] = (states @ torch.from_numpy(weight).T).numpy()
    return logits


def _module_parity(probe: Probe, device_model: DeviceModel, threads: int) -> dict[str, Any]:
    values = TensorReader(probe.values)
    inputs = {name.removeprefix("inputs."): values.array(name) for name in values.entries if name.startswith("inputs.")}
    results = open_graph(device_model, threads).run(inputs)
    difference, same, total = Difference(), 0, 0
    for name, found in results.items():
        expected = values.array(f"outputs.{name}")
        if expected.shape != found.shape:
            raise StageError(f"output '{name}' has shape {found.shape}; torch gives {expected.shape}")
        difference.add(expected, found)
        rows = expected.reshape(-1, expected.shape[-1] if expected.ndim else 1)
        same += int((rows.argmax(1) == found.reshape(rows.shape).argmax(1)).sum())
        total += len(rows)
    return {"top1": same / total, "rows": total, "error": difference.relative()}
