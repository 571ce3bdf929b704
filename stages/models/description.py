"""The small files of a checkpoint: config.json, tokenizer.json, preprocessing.json, checked key by key."""

import json
import math
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from tokenizers import Tokenizer

from pipelines.errors import CheckpointError, nearest
from stages.models.fastvit import VisionConfig
from stages.models.qwen2 import TextConfig
from stages.models.vlm import ModelConfig, ModuleConfig

ARCHITECTURES = ("fastvlm", "qwen2", "module")
ASPECTS = ("pad", "crop", "stretch")
_LAYERS = 1000  # at most: each has tensors that are looked for
_WHOLE = 1e-6  # of a channel: a ratio such as 7/3 is rounded in config.json
RESAMPLING = ("bilinear", "bicubic")
MIXERS = ("repmixer", "attention")
_CONFIG_KEYS = {
    "fastvlm": ("architecture", "vision", "text", "image_token_id"),
    "qwen2": ("architecture", "text"),
    "module": ("architecture", "module"),
}
_TEXT_TYPES: dict[str, Any] = {"prompt_template": str, "end_token": str, "max_new_tokens": int}
_IMAGE_TYPES: dict[str, Any] = {
    "image_size": int,
    "mean": tuple[float, float, float],
    "std": tuple[float, float, float],
    "aspect": str,
    "resample": str,
    "image_token": str,
}


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file path. Raises CheckpointError with the line where it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as cause:
        raise CheckpointError(
            f"{path} is not valid JSON: line {cause.lineno}, column {cause.colno}: {cause.msg}",
            hint="Correct that line, or copy the file again.",
        ) from cause
    except (UnicodeDecodeError, RecursionError) as cause:
        raise CheckpointError(f"{path} is not valid JSON: {cause}", hint="Copy the file again.") from cause
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}; expected an object, {{...}}")
    return value


def check_config(values: dict[str, Any], path: Path) -> ModelConfig:
    """The model's configuration. Raises CheckpointError for a missing, unknown, mistyped or impossible value."""
    architecture = values.get("architecture", "fastvlm")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: architecture is {architecture!r}; expected one of {', '.join(ARCHITECTURES)}",
            hint=f"{nearest(str(architecture), ARCHITECTURES)} README.md says which models can be built.".strip(),
        )
    _check_keys(values, _CONFIG_KEYS[architecture], path, "")
    kinds = {"vision": VisionConfig, "text": TextConfig, "module": ModuleConfig}
    for section in (key for key in kinds if key in _CONFIG_KEYS[architecture]):
        kind = kinds[section]
        if not isinstance(values[section], dict):
            raise CheckpointError(f"{path}: {section} is {values[section]!r}; expected an object, {{...}}")
        optional = [field.name for field in fields(kind) if field.default is not MISSING]
        _check_keys(values[section], [field.name for field in fields(kind)], path, section + ".", optional)
        for key, expected in get_type_hints(kind).items() if section != "module" else ():
            if key in values[section]:
                _check_type(values[section][key], expected, path, f"{section}.{key}")
    if architecture == "fastvlm":
        _check_type(values["image_token_id"], int, path, "image_token_id")
    for key, problem in _contradictions(values):
        raise CheckpointError(f"{path}: {key} {problem}", hint="Take the config.json that the model was trained with.")
    return ModelConfig.from_dict(values)


def check_preprocessing(values: dict[str, Any], config: ModelConfig, path: Path) -> None:
    """Raises CheckpointError for a missing, unknown, mistyped or impossible value."""
    types = {**(_IMAGE_TYPES if config.vision else {}), **_TEXT_TYPES}
    _check_keys(values, list(types), path, "")
    for key, expected in types.items():
        _check_type(values[key], expected, path, key)
    problems = {
        "prompt_template": (
            any(values["prompt_template"].count(part) != 1 for part in ("{image}", "{question}")[not config.vision :]),
            "expected {image} and {question} once each" if config.vision else "expected {question} once",
        ),
        "max_new_tokens": (values["max_new_tokens"] < 1, "expected 1 or more"),
    }
    if config.vision:
        problems |= {
            "image_size": (
                values["image_size"] != config.vision.image_size,
                f"expected {config.vision.image_size}, config.json's vision.image_size",
            ),
            "std": (min(values["std"]) <= 0, "expected three numbers above 0"),
            **{
                key: (
                    values[key] not in choices,
                    f"expected one of {', '.join(choices)}; {nearest(values[key], choices)}",
                )
                for key, choices in (("aspect", ASPECTS), ("resample", RESAMPLING))
            },
        }
    for key, (wrong, expected) in problems.items():
        if wrong:
            raise CheckpointError(f"{path}: {key} is {values[key]!r}; {expected}", hint=f"Correct {key} in that file.")


def parse_tokenizer(text: bytes, path: Path) -> Tokenizer:
    """The tokenizer that tokenizer.json, at path, describes. Raises CheckpointError where it is none."""
    try:
        return Tokenizer.from_str(text.decode())
    except Exception as cause:  # the library raises bare Exception for all that it cannot read
        raise CheckpointError(
            f"{path} is not a tokenizer that the tokenizers library reads: {cause}",
            hint="Save it anew with tokenizer.save('tokenizer.json'); sentencepiece models need converting first.",
        ) from cause


def check_tokenizer(tokenizer: Tokenizer, path: Path, config: ModelConfig, preprocessing: dict[str, Any]) -> None:
    """The tokenizer fits the embedding and knows the special tokens. Raises CheckpointError where not."""
    assert config.text is not None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    largest = max(vocabulary.values(), default=-1)
    if largest >= config.text.vocab_size:
        raise CheckpointError(
            f"{path} has token ids up to {largest}; the embedding has {config.text.vocab_size} rows "
            "(text.vocab_size in config.json)",
            hint="Take the tokenizer that the model was trained with.",
        )
    for key in ("image_token", "end_token") if config.vision else ("end_token",):
        if preprocessing[key] not in vocabulary:
            special = sorted(str(token.content) for token in tokenizer.get_added_tokens_decoder().values())
            raise CheckpointError(
                f"{path} does not know the token {preprocessing[key]!r}, preprocessing.json's {key}",
                hint=f"{nearest(preprocessing[key], vocabulary)} Its special tokens: {', '.join(special)}.".strip(),
            )
    if not config.vision:
        return
    found = vocabulary[preprocessing["image_token"]]
    if found != config.image_token_id:
        raise CheckpointError(
            f"{path} gives {preprocessing['image_token']!r} the id {found}; "
            f"config.json's image_token_id is {config.image_token_id}",
            hint="Take both files from the same model, or correct image_token_id.",
        )


def _check_keys(values: dict[str, Any], expected: Any, path: Path, prefix: str, optional: Sequence[str] = ()) -> None:
    for key in sorted(values.keys() - set(expected)):
        close = nearest(key, set(expected) - values.keys()) or f"expected keys: {', '.join(expected)}."
        raise CheckpointError(f"{path}: unknown key {prefix}{key}", hint=close)
    missing = [prefix + key for key in expected if key not in values and key not in optional]
    if missing:
        raise CheckpointError(f"{path}: missing {', '.join(missing)}", hint="Copy these from the model's own source.")


def _check_type(value: Any, expected: Any, path: Path, key: str) -> None:
    if not _matches(value, expected):
        raise CheckpointError(f"{path}: {key} is {value!r}; expected {_described(expected)}")


def _matches(value: Any, expected: Any) -> bool:
    if get_origin(expected) is tuple:
        inner = get_args(expected)
        if not isinstance(value, list):
            return False
        if inner[-1] is Ellipsis:
            return all(_matches(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(_matches(item, kind) for item, kind in zip(value, inner, strict=True))
    if isinstance(expected, types.UnionType):
        return any(_matches(value, kind) for kind in get_args(expected))
    if expected is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is expected


def _described(expected: Any) -> str:
    if isinstance(expected, types.GenericAlias):
        inner = get_args(expected)
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} x "
        return f"a list of {count}{_described(inner[0]).removeprefix('a ').removeprefix('an ')}"
    if isinstance(expected, types.UnionType):
        return " or ".join(_described(kind) for kind in get_args(expected))
    return {
        int: "an integer",
        float: "a finite number",
        str: "a string",
        bool: "true or false",
        types.NoneType: "null",
    }[expected]


def _contradictions(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Values that no model can have: (key, what is wrong with it)."""
    vision, text = config.get("vision"), config.get("text")
    problems = []
    for section, values in (("vision", vision or {}), ("text", text or {})):
        for key, value in values.items():
            numbers = [value] if type(value) in (int, float) else value if key in ("depths", "widths") else []
            if any(number <= 0 for number in numbers):
                problems.append((f"{section}.{key}", f"is {value}; expected numbers above 0"))
            if key in ("depths", "num_hidden_layers") and sum(numbers) > _LAYERS:
                problems.append((f"{section}.{key}", f"is {value}; expected at most {_LAYERS:,} layers"))
    if problems:
        return problems
    problems = _tower_problems(vision) if vision else []
    if text:
        problems += _decoder_problems(text)
    if text and vision and not 0 <= config["image_token_id"] < text["vocab_size"]:
        found = f"is {config['image_token_id']}; expected less than vocab_size, {text['vocab_size']}"
        problems.append(("image_token_id", found))
    return problems


def _decoder_problems(text: dict[str, Any]) -> list[tuple[str, str]]:
    problems = []
    heads, shared, hidden = (text[key] for key in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if "head_dim" not in text and hidden % (2 * heads):
        found = f"is {hidden}; expected a multiple of 2 x {heads} heads, or the width of a head in text.head_dim"
        problems.append(("text.hidden_size", found))
    if text.get("head_dim", 0) % 2:
        found = f"is {text['head_dim']}; expected an even number: the halves of a head are turned by its position"
        problems.append(("text.head_dim", found))
    if heads % shared:
        problems.append(("text.num_key_value_heads", f"is {shared}; expected a divisor of {heads} heads"))
    if (rank := text.get("head_rank")) is not None:
        most = min(hidden, text["vocab_size"])
        if text["tie_word_embeddings"]:
            found = f"is {rank}, and text.tie_word_embeddings is true: the embedding is the head then; expected null"
            problems.append(("text.head_rank", found))
        elif rank > most:
            found = f"is {rank}; expected at most {most}, the rank of a head of {text['vocab_size']} x {hidden}"
            problems.append(("text.head_rank", found))
    return problems


def _tower_problems(vision: dict[str, Any]) -> list[tuple[str, str]]:
    problems = []
    stages = len(vision["depths"])
    for key in ("depths", "widths", "mixers", "strides"):
        if len(vision[key]) != stages or not stages:
            problems.append((f"vision.{key}", f"has {len(vision[key])} entries; vision.depths has {stages}"))
    for mixer in sorted(set(vision["mixers"]) - set(MIXERS)):
        problems.append(("vision.mixers", f"has {mixer!r}; expected {' or '.join(MIXERS)}. {nearest(mixer, MIXERS)}"))
    for mixer, width in zip(vision["mixers"], vision["widths"], strict=False):
        if mixer == "attention" and width % vision["head_dim"]:
            problems.append(
                ("vision.widths", f"has {width}, which vision.head_dim ({vision['head_dim']}) cannot divide")
            )
    if any(stride < 1 for pair in vision["strides"] for stride in pair):
        problems.append(("vision.strides", f"is {vision['strides']}; expected numbers above 0"))
    return problems or _misfits(vision)


def _misfits(vision: dict[str, Any]) -> list[tuple[str, str]]:
    """Sizes of the tower, each possible alone, that do not go together."""
    problems = []
    widths = vision["widths"]
    for axis, name in enumerate(("rows", "columns")):
        multiple = 4 * math.prod(pair[axis] for pair in vision["strides"][1:])
        if vision["image_size"] % multiple:
            expected = f"expected a multiple of {multiple}: the stem's stride of 4 times the strides of the {name}"
            problems.append(("vision.image_size", f"is {vision['image_size']}; {expected}"))
    for width in widths:
        inner = width * vision["mlp_ratio"]
        if abs(inner - round(inner)) > _WHOLE or not round(inner):
            found = f"is {vision['mlp_ratio']}; expected a whole number of channels for each of the widths {widths}"
            problems.append(("vision.mlp_ratio", f"{found}; times {width} it is {inner:g}"))
            break
    for key in ("ffn_kernel", "patch_kernel"):
        if vision[key] % 2 == 0:
            problems.append((f"vision.{key}", f"is {vision[key]}; expected an odd number, so that padding keeps sizes"))
    for before, after in pairwise(widths):
        if after % before:
            found = f"goes from {before} to {after}; expected a multiple: downsampling is a depthwise convolution"
            problems.append(("vision.widths", found))
    if widths[-1] * vision["expansion"] < 16:
        found = f"ends in {widths[-1]}, times vision.expansion {widths[-1] * vision['expansion']}; expected at least 16"
        problems.append(("vision.widths", f"{found}, which squeeze-and-excitation divides by"))
    return problems
