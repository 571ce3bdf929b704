"""Checkpoints from outside: every file is checked before anything long begins, and nothing in them is ever executed.

A checkpoint is a folder whose config.json says its layout (`layouts`). Names, shapes, dtypes, configuration and
tokenizer are checked first; then the weights stream to the output, a piece at a time, their values checked on the way.
Each mistake is one CheckpointError that says what was found where, what was expected, and what to do.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import CheckpointError, nearest
from stages.models.description import read_object
from stages.models.layouts import apple, native, qwen2, transformers
from stages.models.layouts.tensors import Contents, Stored
from stages.models.layouts.weights import CHUNK, WEIGHTS, listed
from stages.tensorfile import ITEM_SIZES, PlannedWriter, as_array

CONFIG, TOKENIZER, PREPROCESSING = "config.json", "tokenizer.json", "preprocessing.json"
LAYOUTS: Mapping[str, Callable[[Path, dict[str, Any]], Contents]] = {
    layout.MODEL_TYPE: layout.read for layout in (apple, transformers, qwen2)
}
_EXPONENTS = {"F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80), "F32": (np.uint32, 0x7F800000)}

Progress = Callable[[float, float, str], None]


def read_checkpoint(path: Path) -> Contents:
    """Check the checkpoint in the folder path, all but the values of its weights. Raises CheckpointError."""
    _check_folder(path)
    config = path / CONFIG
    values = read_object(config)
    kind = values.get("model_type")
    if kind is None and "architectures" in values:
        raise CheckpointError(
            f"{config}: model_type is missing; expected one of {', '.join(LAYOUTS)}",
            hint="Copy config.json from the model's own source, or name its layout there.",
        )
    if "architecture" in values or kind is None:
        return native.read(config, values)
    if kind not in LAYOUTS:
        raise CheckpointError(
            f"{config}: model_type is {kind!r}; expected one of {', '.join(LAYOUTS)}",
            hint=f"{nearest(str(kind), LAYOUTS)} README.md says which models can be built.".strip(),
        )
    return LAYOUTS[kind](config, values)


def write_checkpoint(contents: Contents, out: Path, progress: Progress | None = None) -> None:
    """Write it into folder out in Tapeout's own layout, in bytes that depend on its contents alone.

    The language model's and the projector's tensors keep their bits, the tower is folded to float32. Raises
    CheckpointError, and leaves no file, where weights hold NaN or infinite values.
    """
    _write_weights(contents, out / WEIGHTS, progress or (lambda done, total, text: None))
    _write_json(out / CONFIG, contents.config.to_dict())
    if contents.preprocessing is not None:
        _write_json(out / PREPROCESSING, contents.preprocessing)
    if contents.tokenizer is not None:
        (out / TOKENIZER).write_bytes(contents.tokenizer)


def _check_folder(path: Path) -> None:
    if not path.exists():
        parent = path.parent
        others = sorted(other.name for other in parent.iterdir() if other.is_dir()) if parent.is_dir() else []
        where = nearest(path.name, others) if parent.is_dir() else f"The folder {parent} does not exist either."
        raise CheckpointError(
            f"there is no checkpoint at {path}",
            hint=f"{where} Set model.path to a folder with {WEIGHTS}, {CONFIG} and a tokenizer.".strip(),
        )
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file; expected a folder with {WEIGHTS}, {CONFIG} and a tokenizer",
            hint=f"Set model.path={path.parent}",
        )
    if not (path / CONFIG).is_file():
        found = sorted(file.name for file in path.iterdir() if file.is_file())
        close = nearest(CONFIG, [file for file in found if file.endswith(".json")])
        hint = " ".join(filter(None, [close, f"Found {listed(found) or 'an empty folder'}."]))
        raise CheckpointError(f"{CONFIG} is missing in {path}", hint=hint)


def _write_weights(contents: Contents, path: Path, progress: Progress) -> None:
    weights, tensors = contents.weights, contents.tensors
    plan = {name: (tensors.dtype(name, weights), source.shape) for name, source in tensors.sources.items()}
    bad: dict[str, str] = {}
    checked: set[str] = set()
    scratch = np.empty(CHUNK, np.uint8)
    with PlannedWriter(path, plan) as writer:
        for index, name in enumerate(writer.order()):
            progress(index, len(plan), name)
            source = tensors.sources[name]
            for part in source.inputs():
                if part not in checked and (problem := _not_finite(contents, part, writer, name, scratch)):
                    bad[part] = problem
                checked.add(part)
            if not isinstance(source, Stored):
                with np.errstate(invalid="ignore", over="ignore"):  # what comes of it is looked at
                    value = np.ascontiguousarray(source.value(weights.array))
                if not np.isfinite(value).all() and not bad.keys() & source.inputs().keys():
                    norms = [part for part in source.inputs() if part.endswith(".running_var")]
                    bad |= {part: "folded with its convolution" for part in norms or list(source.inputs())}
                writer.write(name, value.reshape(-1).view(np.uint8).data)
        if bad:
            raise CheckpointError(
                f"{weights.folder} holds NaN or infinite values in {len(bad)} tensors: "
                + listed(f"{name} ({problem})" for name, problem in sorted(bad.items())),
                hint="Training diverged, or a cast to float16 overflowed at 65,504: export a sound checkpoint again.",
            )


def _not_finite(contents: Contents, part: str, writer: PlannedWriter, name: str, scratch: NDArray[np.uint8]) -> str:
    """How many values of the tensor `part` are NaN or infinite, in words; "" for none. On the way it is written, if it
    goes to the output as it is. scratch: CHUNK bytes."""
    entry = contents.weights.entries[part]
    copied = isinstance(contents.tensors.sources[name], Stored)
    widened = copied and writer.entries[name].dtype != entry.dtype
    count, first, position = 0, -1, 0
    for piece in contents.weights.pieces(part):
        where = _bad_places(piece, entry.dtype, scratch)
        if where.size and not count:
            first = position + int(where[0])
        count += where.size
        position += piece.size // ITEM_SIZES[entry.dtype]
        if copied:
            writer.write(name, _widened(piece, entry.dtype) if widened else piece.data)
    if not count:
        return ""
    place = [int(axis) for axis in np.unravel_index(first, entry.shape)] if entry.shape else []
    return f"{count:,} of {position:,} values, the first at {place}"


def _bad_places(piece: NDArray[np.uint8], dtype: str, scratch: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Where values are NaN or infinite: their exponent's bits are all ones. Integers never are."""
    if dtype not in _EXPONENTS:
        return np.empty(0, np.intp)
    kind, mask = _EXPONENTS[dtype]
    exponents: NDArray[Any] = np.bitwise_and(piece.view(kind), kind(mask), out=scratch[: piece.size].view(kind))
    return np.flatnonzero(exponents == mask) if exponents.max(initial=0) == mask else np.empty(0, np.intp)


def _widened(piece: NDArray[np.uint8], dtype: str) -> memoryview:
    """The values of a piece as float32's bytes."""
    return as_array(piece, dtype).astype(np.float32).view(np.uint8).data


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
