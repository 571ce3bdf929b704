"""What a model's name tells: its relatives, its published arithmetic, its decoder's shape."""

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from math import nan
from pathlib import Path

HERE = Path(__file__).parent
OPERATIONS, ARCHITECTURES = HERE / "operations.csv", HERE / "architectures.csv"

# Models that are one another's relatives: the same shape with other weights (languages, fine-tunes), another precision,
# a distilled or cut one of the same name.
_ENDINGS = re.compile(r"_(quantized|ssd|2507|lowres|instruct|it|chat|dc5|hf)$")
_SAME = {
    "opus_mt": "opus_mt",
    "melotts": "melotts",
    "pipertts": "pipertts",
    "distil_whisper": "whisper_small",
    "intern3_5_vl_2b": "qwen3_1_7b",
    "qwen3_vl_2b": "qwen3_1_7b",
    "intern3_5_vl_4b": "qwen3_4b",
    "qwen3_vl_4b": "qwen3_4b",
    "qwen3_vl_8b": "qwen3_8b",
    "llama_v3_2_1b": "llama_v3_2_1b",
    "llama_v3_2_3b": "llama_v3_2_3b",
    "llama_v3": "llama_v3_8b",
    "smolvlm2_2_2b": "smollm2_1_7b",
    "depth_anything": "depth_anything",
    "real_esrgan_x4plus": "esrgan",
    "detr_resnet101": "detr_resnet101",
    "detr_resnet50": "detr_resnet50",
    "conditional_detr_resnet50": "detr_resnet50",
    "stable_diffusion": "stable_diffusion",
    "controlnet": "stable_diffusion",
    "yolov8": "yolov8",
    "yolov11": "yolov11",
    "yolo26": "yolo26",
    "mediapipe_hand": "mediapipe_hand",
    "bevfusion": "bevdet",
    "centernet": "centernet",
    "detectron2": "detectron2",
    "maskrcnn": "detectron2",
}


# Sizes of public language models in 10^9 parameters, as far as they are no whole numbers.
_DECIMALS = {
    *("1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7", "1.8"),
    *("2.2", "2.4", "2.5", "2.6", "2.7", "2.8", "3.8", "6.7"),
}


@dataclass(frozen=True)
class Decoder:
    """Of a language model. weights: that a token reads (of a mixture, those of its experts); block: without embedding
    and head; cache: elements of a token's keys and values; scores: products of attention, a token and row of context.
    kind: named, where the architecture is in the table; sized, where the name tells no more than a size; speculative,
    where several tokens come of one pass."""

    layers: float
    weights: float
    block: float
    cache: float
    scores: float
    kind: str


def relatives(model: str) -> str:
    """The name of the group that the model is of: all of it goes to one side of a split."""
    while (shorter := _ENDINGS.sub("", model)) != model:
        model = shorter
    starts = [start for start in _SAME if model.startswith(start)]
    return _SAME[max(starts, key=len)] if starts else model


def arithmetic(model: str, component: str) -> float:
    """10^9 multiplications with their additions of one run; nan where they are not published."""
    table = _operations()
    return table.get((model, component), table.get((model, "*"), nan))


def decoder_of(model: str, parameters: str = "") -> Decoder:
    speculative = model.endswith("_ssd")
    starts = [start for start in _architectures() if model.startswith(start)]
    if starts:
        row = _architectures()[max(starts, key=len)]
        layers, hidden, heads, width = row["layers"], row["hidden"], row["heads"], row["head_width"]
        block = row["block"] or layers * (hidden * width * (2 * heads + 2 * row["kv_heads"]) + 3 * hidden * row["ffn"])
        attending = row["attention_layers"]
        cache, scores = 2 * attending * row["kv_heads"] * width, 2 * attending * heads * width
        kind = "speculative" if speculative else "named"
        return Decoder(layers, block + hidden * row["vocabulary"], block, cache, scores, kind)
    size = sized(model) or sized("_" + parameters.split()[0].lower().replace(".", "_") if parameters else "")
    weights = size or 3e9
    layers = 14 + 8 * (weights / 1e9) ** 0.5
    width = 1024 * (weights / 1e9) ** 0.5
    kind = "speculative" if speculative else "sized"
    return Decoder(layers, weights, 0.85 * weights, 2 * layers * 1024, 2 * layers * width, kind)


def sized(name: str) -> float | None:
    """The parameters that a name tells of: qwen3_0_6b 0.6e9, gemma_4_e2b_it 2e9, jais_6p7b 6.7e9; None: of none."""
    found = re.findall(r"(?:^|_)e?(?:(\d+)([_p]))?(\d+)b(?:_|$)", name)
    if not found:
        return None
    whole, mark, last = found[0]
    decimal = f"{whole}.{last}"  # or the end of a version and a whole size: ministral_3_3b, llama_v3_2_1b
    return float(decimal if mark == "p" or whole == "0" or decimal in _DECIMALS else last) * 1e9


@lru_cache
def _operations() -> dict[tuple[str, str], float]:
    with OPERATIONS.open(encoding="utf-8") as file:
        return {(row["model"], row["component"]): float(row["gigamacs"]) for row in csv.DictReader(file)}


@lru_cache
def _architectures() -> dict[str, dict[str, float]]:
    with ARCHITECTURES.open(encoding="utf-8") as file:
        return {
            row.pop("model"): {name: float(value or 0) for name, value in row.items()} for row in csv.DictReader(file)
        }
