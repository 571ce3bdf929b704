"""What the stages of a made-up build (tests/stages/reported.py) measured and predicted: invented figures.

`HOSTILE` replaces names, questions and answers by what a page must not believe.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from typing import Any

from PIL import Image

from tests.stages.reported_devices import IPHONES, Made

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "\"'><svg onload=alert(1)>& \u202egnp.exe",
    "{{7*7}} <!-- -->]]> \x00\x07\ud800 <style>*{display:none}</style>",
    "W" * 300,
    "http://example.invalid/a.png' onmouseover='alert(1)",
)
TASKS = {
    "ocr": "cer",
    "ocr_unseen_fonts": "cer",
    "color": "exact",
    "shape": "exact",
    "count": "exact",
    "existence": "exact",
    "position": "exact",
    "caption": "facts",
    "digit": "exact",
}
SEEN = ("cat", "dog", "red", "three", "left", "7", "PYCKD", "a blue circle above a green square", "no")


class Contents:
    """The same for the same arguments. blocked: whether some gates fail."""

    def __init__(self, hostile: bool, blocked: bool) -> None:
        self.hostile, self.blocked = hostile, blocked
        self.chance = random.Random(7)

    def profile(self, device: Made) -> dict[str, Any]:
        name, title, chip, speed = device
        apple = device in IPHONES
        bandwidth, peak = round(51.2 * speed, 1), round(35000 * speed)
        return {
            "name": name,
            "title": self.text(title, 0) if name == "iphone-12" else title,
            "runtime": "coreml" if apple else "onnxruntime",
            "chip": chip,
            "compute_units": ["neural_engine", "gpu", "cpu"] if apple else [],
            "execution_providers": [] if apple else ["QNNExecutionProvider", "CPUExecutionProvider"],
            "minimum_os": "iOS18" if apple else "android14",
            "memory_gib": 8,
            "hardware": {
                "bandwidth_gb_s": bandwidth,
                "peaks": {"npu": {"int8": peak, "float16": peak / 2, "float32": None}},
            },
            "thermal": {"mass_g": 187, "peak_w": 6.5, "sustained_w": 3.1, "steps": None},
            "budgets": {
                "size_mib": 4.0,
                "memory_mib": 220,
                "token_ms": None,
                "first_token_ms": 60.0,
                "encode_ms": 40.0,
            },
            "sources": {
                "memory_gib": {"confidence": "medium", "source": "tables of third parties"},
                "hardware.bandwidth_gb_s": {"confidence": "medium", "source": "LPDDR5-6400 on 64 bits"},
                "hardware.peaks.npu.int8": {"confidence": "high", "source": "the maker's announcement"},
            },
        }

    def predicted(self, speed: float) -> dict[str, Any]:
        def of(value: float, spread: float = 0.3) -> dict[str, float]:
            value *= 1 + self.chance.uniform(-0.1, 0.1)
            return {
                "value": round(value, 4),
                "low": round(value * (1 - spread), 4),
                "high": round(value * (1 + 1.4 * spread), 4),
            }

        rate = 210 * speed
        return {
            "predicted": {
                "encode_ms": of(6.2 / speed),
                "prefill_ms": of(4.1 / speed),
                "first_token_ms": of(11 / speed),
                "token_ms": of(1000 / rate),
                "tokens_per_s": of(rate),
                "tokens_per_s_1min": of(rate * 0.98),
                "tokens_per_s_5min": of(rate * 0.8, 0.4),
                "tokens_per_s_15min": of(rate * 0.7, 0.5),
                "peak_memory_mib": of(96, 0.15) | {"judged": True},
                "energy_j": of(0.12 / speed**0.3, 0.5),
            },
            "by_context": {str(context): of(rate * (1.05 - context / 8192)) for context in (128, 256, 512, 1024)},
            "basis": {
                "decode": "Bytes read a token over the bandwidth, scaled by 212 published rates of such chips.",
                "encode": "Operations and bytes of the graph, fitted to 1,900 published latencies.",
            },
        }

    def evaluated(self, runtime: str) -> dict[str, Any]:
        tasks = {}
        for place, (task, metric) in enumerate(TASKS.items()):
            before = 1 - 0.012 * (place % 4) - (0.05 if "ocr" in task else 0)
            kept = 1 - 0.004 * (place % 3) - (0.031 if task == "ocr_unseen_fonts" and runtime == "coreml" else 0)
            tasks[task] = {
                "n": 150,
                "metric": metric,
                "fp32": before,
                "artifact": before * kept,
                "retention": kept,
                "retention_low": kept - 0.014,
                "retention_high": min(kept + 0.012, 1.02),
                "flips": 0.0067 * (place % 3),
                metric: before * kept,
            }
        overall = {
            "n": 1350,
            "metric": "exact",
            "fp32": 0.9681,
            "artifact": 0.9574 if runtime == "coreml" else 0.9622,
            "retention": 0.9889 if runtime == "coreml" else 0.9939,
            "retention_low": 0.982,
            "retention_high": 0.997,
            "flips": 0.011,
        }
        return {
            "questions": {
                "source": self.text("procedural", 2),
                "count": 1350,
                "per_task": 150,
                "seed": 23,
            },
            "tasks": tasks,
            "overall": overall,
            "parity": {"top1": 0.9996, "tokens": 4917, "error": 0.0021},
            "fidelity": {"kl": 0.0113, "agreement": 0.991, "vocabulary": 1.0, "prompts": 1.0, "floats": 1.0},
        }

    def checked(self, metrics: Mapping[str, Any], budgets: Mapping[str, Any], evaluated: Mapping[str, Any]) -> Any:
        loosened = 0.0 if self.blocked else -1.0
        for task, row in evaluated["tasks"].items():
            yield _gate(
                "retention_low",
                task,
                row["retention_low"],
                0.96 + loosened,
                "min",
                False,
                [
                    "int8 output head: +1.2 points for 0.4 MB, from the allocation frontier.",
                    "Groups of 16 in text.layers.3: +0.4 points for 0.1 MB.",
                ],
            )
        yield _gate("size_bytes", None, metrics["size_bytes"], 36_700_160, "max", False)
        yield _gate("parity.top1", None, metrics["parity"]["top1"], 0.995, "min", False)
        for budget, name in (
            ("first_token_ms", "first_token_ms"),
            ("encode_ms", "encode_ms"),
            ("memory_mib", "peak_memory_mib"),
        ):
            found = metrics["predicted"][name]["high"]
            bound = budgets[budget] * (1 if self.blocked else 100)
            yield {
                **_gate(f"budget.{budget}", None, found, bound, "max", True, ["A tower of 64 px: 2.1 times as fast."]),
                "end": "high",
            }
        yield _gate("budget.size_mib", None, metrics["size_bytes"] / 2**20, budgets["size_mib"], "max", False)

    def answers(self) -> bytes:
        lines = [
            {
                "task": list(TASKS)[number % 9],
                "question": f"question {number}",
                "expected": "cat",
                "answer": "dog" if number % 11 == 0 else "cat",
                "score": 0.0 if number % 11 == 0 else 1.0,
            }
            for number in range(90)
        ]
        return "".join(json.dumps(line) + "\n" for line in lines).encode()

    def flips(self, runtime: str) -> dict[str, bytes]:
        files, lines = {}, []
        chance = random.Random(3)
        for number in range(1, 17 if runtime == "coreml" else 8):
            files[f"flips/{number:04}.png"] = _picture(number)
            better = number % 5 == 0
            lines.append(
                {
                    "task": list(TASKS)[number % len(TASKS)],
                    "question": self.text("what is in the picture?", number % 5),
                    "expected": SEEN[number % len(SEEN)],
                    "before": self.text(SEEN[number % len(SEEN)], (number + 1) % 5),
                    "after": self.text(chance.choice(SEEN), (number + 2) % 5),
                    "score_before": 0.0 if better else 1.0,
                    "score_after": 1.0 if better else round(chance.random() * 0.6, 2),
                    "image": f"flips/{number:04}.png",
                }
            )
        files["flips.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return files

    def formats(self) -> dict[str, Any]:
        tensors: dict[str, Any] = {}
        chance = random.Random(5)
        names = [
            f"text.layers.{layer}.{part}.weight"
            for layer in range(4)
            for part in (
                "mlp.down_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "self_attn.k_proj",
                "self_attn.o_proj",
                "self_attn.q_proj",
                "self_attn.v_proj",
            )
        ]
        names += [
            f"vision.stages.{stage}.{block}.{part}.weight"
            for stage in range(4)
            for block in range(2)
            for part in ("contract", "expand", "depthwise")
        ]
        for name in ["projector.0.weight", "projector.2.weight", "text.embed_tokens.weight", *names]:
            bits = chance.choice([4, 4, 4, 8]) if "vision" not in name else 8
            shape = [384, 128] if "mlp" in name else [128, 128]
            size = shape[0] * shape[1]
            tensors[name] = {
                "format": "affine",
                "bits": bits,
                "group_size": 32,
                "shape": shape,
                "bytes": size * bits // 8 + size // 32 * 2,
                "symmetric": False,
            }
            tensors[name.replace("weight", "bias")] = {
                "format": "float",
                "dtype": "float16",
                "shape": [128],
                "bytes": 256,
            }
        total = sum(each["bytes"] for each in tensors.values())
        return {
            "tensors": dict(sorted(tensors.items())),
            "totals": {"bits_per_parameter": 6.4522, "bytes": total, "parameters": 1_727_760},
        }

    def layers(self, formats: Mapping[str, Any]) -> dict[str, Any]:
        chance = random.Random(9)
        return {
            name: {
                "bits": each["bits"],
                "format": each["format"],
                "bytes": each["bytes"],
                "error": round(chance.uniform(0.5, 1.5) * (0.08 if each["bits"] == 4 else 0.005), 5),
            }
            for name, each in formats["tensors"].items()
            if "bits" in each
        }

    def frontier(self) -> dict[str, Any]:
        def row(size: float, accuracy: float, kl: float) -> dict[str, Any]:
            return {
                "bytes": int(size * 1e6),
                "bits": size * 4.6,
                "estimate": kl,
                "kl": kl,
                "high": kl * 1.2,
                "agreement": 0.99,
                "accuracy": accuracy,
            }

        points = [row(0.6 + 0.11 * n, 0.965 - 0.4 * 0.62**n, 1.2 * 0.6**n) for n in range(12)]
        uniform = [
            {"label": label, **row(size, accuracy, 0.05)}
            for label, size, accuracy in (
                ("int4, groups of 32", 1.05, 0.905),
                ("int8", 1.75, 0.9632),
                ("palette-4", 0.98, 0.88),
            )
        ]
        return {"chosen": row(1.393, 0.9581, 0.011), "points": points, "uniform": uniform}

    def text(self, usual: str, place: int) -> str:
        return HOSTILE[place % len(HOSTILE)] if self.hostile else usual


def _gate(
    metric: str,
    task: str | None,
    value: float,
    bound: float,
    kind: str,
    predicted: bool,
    help_: list[str] | None = None,
) -> dict[str, Any]:
    passed = value >= bound if kind == "min" else value <= bound
    return {
        "metric": metric,
        "task": task,
        "value": value,
        "bound": bound,
        "kind": kind,
        "passed": passed,
        "end": "value",
        "predicted": predicted,
        "by": abs(value - bound),
        "help": [] if passed else help_ or [],
    }


def risks() -> list[dict[str, Any]]:
    return [
        {
            "count": 24,
            "function": "main",
            "line": "stages/models/fastvit.py:112 (return self.contract(F.gelu(self.expand(x))))",
            "operation": "v28",
            "operator": "conv",
            "package": "encoder.mlpackage",
            "rule": "last-axis",
            "source": "ane-guide",
            "risk": "A last axis of 24; it is padded to 32 or more, which costs memory.",
        },
        {
            "count": 6,
            "function": "decode",
            "line": "stages/models/qwen2.py:88",
            "operation": "v3",
            "operator": "gather",
            "package": "decoder.mlpackage",
            "rule": "gather",
            "source": "coreai-models",
            "risk": "A gather with dynamic indices may fall to the CPU.",
        },
    ]


def _picture(number: int) -> bytes:
    image = Image.new("RGB", (96, 96), (number * 37 % 256, number * 91 % 256, 180))
    image.paste((240, 240, 230), (20 + number, 24, 60, 64))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
