"""The weight files of a checkpoint's folder: model.safetensors, or shards named by model.safetensors.index.json."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import CheckpointError, nearest
from stages.models.description import read_object
from stages.tensorfile import TensorEntry, as_array, read_header

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CHUNK = 1 << 22  # bytes read at a time


class WeightFiles:
    """The tensors of a folder by name, wherever they lie. Bytes are read, not mapped, so that memory holds one piece.

    Raises CheckpointError for a file or a shard that is missing, damaged, outside the folder, or not as indexed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.entries: dict[str, TensorEntry] = {}
        self._files: dict[str, Path] = {}
        for path, names in _shards(folder).items():
            found = read_header(path, CheckpointError)
            self._check_shard(path, names, found)
            self.entries |= found
            self._files |= dict.fromkeys(found, path)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    @property
    def paths(self) -> list[Path]:
        return sorted(set(self._files.values()))

    def pieces(self, name: str) -> Iterator[NDArray[np.uint8]]:
        """The bytes of the tensor, at most CHUNK at a time, always whole values; a piece lasts until the next."""
        entry = self.entries[name]
        left = entry.end - entry.begin
        buffer = np.empty(
            min(left, CHUNK), np.uint8
        )  # one for all pieces: fresh memory costs more than reading into it
        with self._files[name].open("rb", buffering=0) as file:
            file.seek(entry.begin)
            while left:
                piece = buffer[: min(left, CHUNK)]
                filled = 0
                while filled < piece.size:
                    count = file.readinto(piece[filled:].data)
                    if not count:
                        raise CheckpointError(f"{self._files[name]} became shorter while it was read")
                    filled += count
                left -= filled
                yield piece

    def array(self, name: str) -> NDArray[Any]:
        """The whole tensor; bfloat16 as float32."""
        entry = self.entries[name]
        with self._files[name].open("rb") as file:
            file.seek(entry.begin)
            data = np.frombuffer(file.read(entry.end - entry.begin), np.uint8)
        return as_array(data, entry.dtype).reshape(entry.shape)

    def _check_shard(self, path: Path, names: set[str] | None, found: dict[str, TensorEntry]) -> None:
        if names is None:
            return
        if missing := sorted(names - found.keys()):
            raise CheckpointError(
                f"{path} lacks {len(missing)} of the tensors that {INDEX} places in it: {listed(missing)}",
                hint="The shard is of another checkpoint, or of another version of this one: copy all files again.",
            )
        if strangers := sorted(found.keys() - names):
            raise CheckpointError(
                f"{path} holds {len(strangers)} tensors that {INDEX} does not place in it: {listed(strangers)}",
                hint="The shard or the index is of another checkpoint: copy all files again.",
            )


def listed(names: Any, most: int = 5) -> str:
    """The first of `names`, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """{file: the tensors that the index places in it, None where there is no index}."""
    single, index = folder / WEIGHTS, folder / INDEX
    if index.is_file() and single.is_file():
        raise CheckpointError(
            f"{folder} holds both {WEIGHTS} and {INDEX}, and it is not clear which is meant",
            hint=f"Remove {INDEX} and its shards, or {WEIGHTS}.",
        )
    if single.is_file():
        return {_inside(folder, WEIGHTS): None}
    if not index.is_file():
        raise CheckpointError(f"{WEIGHTS} is missing in {folder}", hint=_hint_for_missing(folder))
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(
            f"{index}: weight_map is {json.dumps(places)[:60]}; expected an object of tensor names and file names",
            hint="Copy the index again.",
        )
    shards: dict[Path, set[str] | None] = {}
    files = sorted(set(places.values()))
    for file in files:
        path = _inside(folder, file)
        if not path.is_file():
            count = sum(place == file for place in places.values())
            near = nearest(file, [each.name for each in folder.glob("*.safetensors") if each.name not in files])
            raise CheckpointError(
                f"{file} is missing in {folder}; {INDEX} places {count} tensors in it",
                hint=f"{near} Copy or download that shard: there are {len(files)} in all.".strip(),
            )
        shards[path] = {name for name, place in places.items() if place == file}
    return shards


def _inside(folder: Path, file: str) -> Path:
    """The file of that name, which must lie in the folder itself, or be a link within the store that holds the folder.

    A hub's cache keeps its files in `blobs`, beside the `snapshots` that link to them.
    """
    path = folder / file
    if not file.endswith(".safetensors"):
        raise CheckpointError(
            f"{folder / INDEX} names the file '{file}'; expected names that end in .safetensors",
            hint="Copy the index again, or save the model anew in that format.",
        )
    if Path(file).name != file:
        raise CheckpointError(
            f"{folder / INDEX} names the file '{file}', which is not a plain name within {folder}",
            hint="Such an index could read files from anywhere, so it is refused. Copy all shards beside the index.",
        )
    try:
        target = path.resolve(strict=path.is_symlink())
    except (OSError, RuntimeError) as cause:
        raise CheckpointError(
            f"{path} is a link that leads nowhere or in a circle", hint="Copy the file itself into the folder."
        ) from cause
    home = folder.resolve()
    store = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if path.is_symlink() and home not in target.parents and store not in target.parents:
        raise CheckpointError(
            f"{path} is a link to {target}, outside of {folder}", hint="Copy the file itself into the folder."
        )
    return path


def _hint_for_missing(folder: Path) -> str:
    found = sorted(file.name for file in folder.iterdir() if file.is_file())
    pickles = [file for file in found if file.endswith(_PICKLES)]
    if pickles:
        return (
            f"{pickles[0]} may be a Python pickle, which can run any code, so it was not opened. If you trust it, "
            f"convert it with safetensors.torch.save_file(torch.load('{pickles[0]}', weights_only=True), '{WEIGHTS}')."
        )
    if shards := [file for file in found if file.endswith(".safetensors")]:
        return f"Found {listed(shards)}: a single file must be named {WEIGHTS}, and shards need {INDEX} beside them."
    return f"Found {listed(found) or 'an empty folder'}."
