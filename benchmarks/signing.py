"""Signing and verifying a bundle of 1 GiB, as whole processes, beside `sha256sum` of its files.

Bounds: 1.5 times the time of sha256sum, and 1 s. The runs alternate, so that a busy moment meets all of them.

python benchmarks/signing.py [--size MIB] [--runs N] [--json FILE]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stages.release.bundles.archive import pack
from stages.release.manifest import Manifest, write_manifest
from stages.release.signing.keys import new_key
from stages.release.signing.signing import sign_bundle

SMALL = {"encoder.onnx": 200_000, "decoder.onnx": 400_000, "tokenizer.json": 3_000_000, "sbom.cdx.json": 100_000}
TEXT = {"MODEL_CARD.md": 5_000}
PASSPHRASE = "a passphrase of the benchmark's"
FACTOR, MORE = 1.5, 1.0  # of sha256sum's time; s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the weights")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tapeout-signing-") as folder:
        figures = measure(Path(folder), options.size, options.runs)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(root: Path, size: int, runs: int) -> dict[str, Any]:
    """Return the seconds of each command, run by run."""
    (root / "conf").mkdir()
    (root / "pyproject.toml").write_text("")
    bundle, archive = root / "folders/pixel-8", root / "archives/pixel-8.tar"
    manifest = make(bundle, size)
    pack(bundle, archive)
    key = new_key(root / "key", passphrase=PASSPHRASE)
    for path in (bundle, archive):
        sign_bundle(path, [key], statement(manifest))
    to_sign = [again(path, root / "to-sign") for path in (bundle, archive)]  # what is verified keeps its provenance
    files = [str(bundle / file.path) for file in manifest.files]
    tapeout = [sys.executable, "-m", "pipelines.cli"]
    trusted = ["--key", str(root / "key.pub")]
    commands = {
        "sha256sum": ["sha256sum", *files],
        "verify folder": [*tapeout, "verify", str(bundle), *trusted],
        "verify archive": [*tapeout, "verify", str(archive), *trusted],
        "sign folder": [*tapeout, "sign", str(to_sign[0]), "--key", str(root / "key"), "--no-provenance"],
        "sign archive": [*tapeout, "sign", str(to_sign[1]), "--key", str(root / "key"), "--no-provenance"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    load = []
    for _ in range(runs):
        for name, words in commands.items():
            load.append(os.getloadavg()[0])
            seconds[name].append(run(words, root))
    return {"mib": manifest.size / 2**20, "cores": os.cpu_count(), "load_average": max(load), "seconds": seconds}


def again(path: Path, parent: Path) -> Path:
    """Return the same bundle elsewhere; hard links take no room."""
    for each in [path, *path.rglob("*")]:
        if each.is_file():
            place = parent / each.relative_to(path.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(each, place)
    return parent / path.name


def make(folder: Path, size: int) -> Manifest:
    """Write a bundle with `size` MiB of weights. What they are makes no difference to a digest's time."""
    folder.mkdir(parents=True)
    block = os.urandom(1 << 20)
    with (folder / "decoder.onnx.data").open("wb") as file:
        for _ in range(size):
            file.write(block)
    for name, count in (SMALL | TEXT).items():
        (folder / name).write_bytes(os.urandom(count))
    return write_manifest(
        folder,
        {
            "name": "benchmark",
            "version": "1.0.0",
            "device": {"name": "pixel-8"},
            "runtime": "onnxruntime",
            "model": {"runtime": "onnxruntime", "files": {"decoder": "decoder.onnx"}},
            "weights": [],
            "validation": {},
            "licence": {"weights": None, "files": []},
            "documents": {"model_card": "MODEL_CARD.md", "bill_of_materials": "sbom.cdx.json"},
            "self_test": [],
        },
    )


def statement(manifest: Manifest) -> dict[str, Any]:
    """Return a provenance as a build writes it, of nothing."""
    digest = {"sha256": manifest.digest}
    parameters = {"name": manifest.name, "version": manifest.version, "device": manifest.device}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "manifest.json", "digest": digest}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:tapeout:build:1",
                "externalParameters": parameters,
                "resolvedDependencies": [],
            },
            "runDetails": {
                "builder": {"id": "urn:tapeout:builder:local"},
                "byproducts": [{"name": "bundle", "digest": digest}],
            },
        },
    }


def run(words: list[str], root: Path) -> float:
    """Run a command; return its seconds from start to end."""
    environment = {**os.environ, "TAPEOUT_PASSPHRASE": PASSPHRASE}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), environment.get("PYTHONPATH", "")]))
    began = time.perf_counter()
    subprocess.run(words, cwd=root, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def show(figures: dict[str, Any]) -> None:
    found = {name: statistics.median(each) for name, each in figures["seconds"].items()}
    base = found["sha256sum"]
    print(f"{figures['mib']:.0f} MiB, {figures['cores']} cores, load average up to {figures['load_average']:.1f}")
    print(f"{'median s':<16}{'':>8}{'best':>8}{'x sha256sum':>14}{f'bound: {FACTOR} x + {MORE:g} s':>22}")
    for name, median in found.items():
        bound = FACTOR * base + MORE
        kept = "" if name == "sha256sum" else f"{bound:.2f} {'kept' if median <= bound else 'NOT KEPT'}"
        print(f"{name:<16}{median:>8.2f}{min(figures['seconds'][name]):>8.2f}{median / base:>14.2f}{kept:>22}")


if __name__ == "__main__":
    main()
