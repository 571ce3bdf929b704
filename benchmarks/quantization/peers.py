"""The peers' variants, each run once in a child process and kept: a second run of the benchmark reads what is there."""

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convert.spent import environment_for

from quantization.subject import REFERENCE

PACKAGES = {"nncf": "nncf", "coremltools": "coremltools", "onnxruntime": "onnxruntime"}
SHARED = ("subject.py", "packed.py", "child.py")


@dataclass(frozen=True)
class Variant:
    """bits: of a code, nominally. whole, same: on which bases it counts (see benchmarks/quantization.py). unheld: why
    no file of the peer's can hold it; it is then listed and not counted."""

    peer: str
    label: str
    bits: float
    settings: dict[str, Any]
    whole: bool = True
    same: bool = True
    unheld: str = ""

    @property
    def key(self) -> str:
        """Of all that its result depends on."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        digest.update(version(PACKAGES[self.peer]).encode() + version("torch").encode())
        digest.update((REFERENCE / "model.safetensors").read_bytes())
        for name in (*SHARED, f"{self.peer}_peer.py"):
            code = (Path(__file__).parent / name).read_text(encoding="utf-8")
            digest.update(ast.unparse(ast.parse(code)).encode())
        return f"{self.peer}-{digest.hexdigest()[:16]}"


def variants(peers: Sequence[str]) -> list[Variant]:
    made = {"nncf": _nncf, "coremltools": _coremltools, "onnxruntime": _onnxruntime}
    return [variant for peer in peers for variant in made[peer]()]


def run(chosen: Sequence[Variant], cache: Path) -> dict[str, Path]:
    """{key: folder of a Packed}; what the cache lacks is made, one process for each peer."""
    cache.mkdir(parents=True, exist_ok=True)
    for peer in PACKAGES:
        missing = {each.key: each.settings for each in chosen if each.peer == peer and not done(cache / each.key)}
        if missing:
            words = [sys.executable, "-m", "quantization.child", peer, json.dumps(missing), str(cache)]
            with (cache / f"{peer}.log").open("a") as log:
                ended = subprocess.run(words, stdout=log, stderr=log, env=environment_for(threads=1)).returncode
            if ended:
                raise SystemExit(f"a measurement ended with {ended}: see {log.name}")
    return {each.key: cache / each.key for each in chosen}


def done(folder: Path) -> bool:
    """A variant that failed is tried again."""
    about = folder / "about.json"
    return about.is_file() and not json.loads(about.read_text(encoding="utf-8"))["missing"]


def _nncf() -> Iterator[Variant]:
    for mode in ("INT8_ASYM", "INT8_SYM"):
        yield Variant("nncf", mode, 8, {"mode": mode, "linears": False})
    helped = {"": (False, False), " awq": (True, False), " scale": (False, True), " awq, scale": (True, True)}
    for mode in ("INT4_ASYM", "INT4_SYM"):
        for words, (awq, scale) in helped.items():
            label = f"{mode} g32{words}"
            settings = {"mode": mode, "awq": awq, "scale_estimation": scale, "all_layers": False}
            yield Variant("nncf", label, 4, settings | {"linears": True}, whole=False)
            if awq == scale:
                yield Variant("nncf", label, 4, settings | {"linears": False}, same=False)
                everything = settings | {"linears": False, "all_layers": True}
                yield Variant("nncf", f"{label} all_layers", 4, everything, same=False)


def _coremltools() -> Iterator[Variant]:
    for method in ("ptp", "skm"):
        for bits in (8, 6, 4, 3, 2, 1):
            for group, words in ((0, "per tensor"), (16, "g16")):
                if bits > 4 and group:  # k-means onto 256 values a group takes an hour, and gains nothing
                    continue
                label, settings = f"{method.upper()} {bits} bits {words}", {"method": method, "bits": bits}
                settings["group"] = group
                yield Variant("coremltools", label, bits, settings, whole=method == "skm")
                if bits <= 4:
                    scaled = settings | {"channel_scale": True}
                    yield Variant("coremltools", f"{label}, channel scale", bits, scaled, whole=False)
        for vector, bits in ((2, 8), (2, 6), (2, 4), (2, 2), (4, 8), (4, 4)):
            if bits == 8 and method == "ptp":  # a quarter of an hour each, and weighted they are better
                continue
            settings = {"method": method, "bits": bits, "vector": vector}
            label = f"{method.upper()} vectors of {vector}, {bits} bits"
            yield Variant("coremltools", label, bits / vector, settings, whole=False)
    yield Variant("coremltools", "PTQ int8", 8, {"method": "ptq", "bits": 8, "symmetric": True})
    for symmetric, words in ((True, "int4"), (False, "uint4")):
        settings = {"method": "ptq", "bits": 4, "block": 32, "symmetric": symmetric}
        yield Variant("coremltools", f"PTQ {words} b32", 4, settings)
    unheld = "Core ML's affine weights have 4 or 8 bits"
    for bits in (4, 3, 2):
        for symmetric, sign in ((True, "sym"), (False, "asym")):
            settings = {"method": "gptq", "bits": bits, "block": 32, "symmetric": symmetric, "order": True}
            label = f"GPTQ {bits} bits {sign} b32, act-order"
            yield Variant("coremltools", label, bits, settings, whole=False, unheld="" if bits == 4 else unheld)
    for bits in (4, 3):
        for order in (False, True):
            settings = {"method": "gptq", "bits": bits, "symmetric": True, "normal_float": True, "order": order}
            label = f"GPTQ nf{bits}" + (", act-order" if order else "")
            yield Variant("coremltools", label, bits, settings, whole=False)


def _onnxruntime() -> Iterator[Variant]:
    for bits in (8, 4, 2):
        for block in (32, 16):
            for symmetric, sign in ((True, "sym"), (False, "asym")):
                settings = {"algorithm": "rtn", "bits": bits, "block": block, "symmetric": symmetric}
                label = f"MatMulNBits {bits} bits {sign} b{block}"
                yield Variant("onnxruntime", label, bits, settings, whole=block == 32)
    for bits in (4, 2):
        for block in (32, 16):
            settings = {"algorithm": "hqq", "bits": bits, "block": block, "symmetric": False}
            yield Variant("onnxruntime", f"HQQ {bits} bits b{block}", bits, settings, whole=False)
    for block in (32, 16):
        settings = {"algorithm": "k_quant", "bits": 4, "block": block, "symmetric": False}
        yield Variant("onnxruntime", f"k_quant 4 bits b{block}", 4, settings, whole=False)
    for symmetric, sign in ((True, "sym"), (False, "asym")):
        for order, mse in ((False, False), (True, False), (False, True)):
            settings = {"algorithm": "gptq", "bits": 4, "block": 32, "symmetric": symmetric, "order": order, "mse": mse}
            label = f"GPTQ 4 bits {sign} b32" + (", act-order" if order else "") + (", mse" if mse else "")
            yield Variant("onnxruntime", label, 4, settings, whole=False)
