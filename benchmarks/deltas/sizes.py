"""Bytes that an update sends, by part, and what general tools would send."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.figures import Figure

from deltas.bundles import Releases
from deltas.peers import patch_from

TARGET = 0.10  # of the bundle
MANIFEST = "manifest.json"
Peer = Callable[[Path, Path], int]


@dataclass(frozen=True)
class Sent:
    """A file that changed. size: in bytes, whole; delta: what is sent for it."""

    name: str
    size: int
    delta: int


def fine_tuned(releases: Releases, rate: float, bsdiff: Peer | None, with_target: bool) -> list[Figure]:
    """int8 and int4, each device: the bundle's update, its parts, and the peers on the same files."""
    found = []
    for quantize in ("int8", "int4"):
        old, new = releases.bundles(quantize), releases.bundles(quantize, rate)
        for device in new:
            sent, whole = update(old[device], new[device]), size_of(new[device])
            told = sum(each.delta for each in sent)
            how = f"{told:,} of {whole:,} bytes; fine-tuned at {rate:g}"
            title = f"{quantize}, {device}: update / bundle"
            found.append(Figure(title, told / whole, "", how, TARGET if with_target else None))
            for each in sent:
                how = "always whole" if each.name == MANIFEST else f"of {each.size:,} bytes"
                found.append(Figure(f"  {each.name.removeprefix('decoder.mlpackage/Data/')}", each.delta, "bytes", how))
            for title, peer in (("zstd --patch-from, level 19", patch_from), ("bsdiff4", bsdiff)):
                if peer:
                    told = sum(by_peer(peer, each, old[device], new[device]) for each in sent)
                    found.append(
                        Figure(f"  peer: {title}", told / whole, "", "the same files; whole where that is less")
                    )
    return found


def regrouped(releases: Releases, rate: float) -> list[Figure]:
    """int4 in groups of 64 after groups of 32: what is sent for the language model's weights."""
    old = releases.bundles("int4")
    new = releases.bundles("int4", rate, "quantize.group_size=64")
    found = []
    for device in new:
        weights = next(
            each
            for each in update(old[device], new[device])
            if "decoder" in each.name and each.size > 1e5 and not each.name.endswith(".mlmodel")
        )
        how = f"{weights.delta:,} of {weights.size:,} bytes of {weights.name}"
        found.append(
            Figure(f"int4, groups of 64 after 32, {device}", weights.delta / weights.size, "", how, 1.0, False)
        )
    return found


def update(old: Path, new: Path) -> list[Sent]:
    """What is sent for each file that changed. Each delta is applied, and what comes of it compared."""
    from stages.release.deltas.delta import apply_delta, make_delta
    from stages.release.manifest import sha256_of

    found = []
    with tempfile.TemporaryDirectory() as name:
        delta, out = Path(name, "delta"), Path(name, "out")
        for path in sorted(each for each in new.rglob("*") if each.is_file()):
            title, size = path.relative_to(new).as_posix(), path.stat().st_size
            older = old / title
            if older.is_file() and older.read_bytes() == path.read_bytes():
                continue
            made = None
            if older.is_file() and title != MANIFEST:
                made = make_delta(older, path, delta, title, old, new)
            if made is not None:
                apply_delta(delta, older, out, expected_size=size, expected_sha256=sha256_of(path))
                assert out.read_bytes() == path.read_bytes()
            found.append(Sent(title, size, size if made is None else made))
    return found


def by_peer(peer: Peer, sent: Sent, old: Path, new: Path) -> int:
    if sent.name == MANIFEST or not (old / sent.name).is_file():
        return sent.size
    return min(sent.size, peer(old / sent.name, new / sent.name))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
