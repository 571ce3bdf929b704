"""A checkpoint's tokenizer, with the image token in it, and the token that ends an answer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipelines.errors import CheckpointError
from stages.models.description import parse_tokenizer, read_object

# How Qwen2 splits a text before byte-level BPE (its tokenizer.json, Split).
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Tokens:
    """text: what tokenizer.json will hold. image_token_id is None for a model without images."""

    text: bytes
    tokenizer: Tokenizer
    image_token: str | None
    image_token_id: int | None
    end_token: str


def read_tokens(folder: Path, config: dict[str, Any], vocabulary_size: int, image_token: str | None) -> Tokens:
    """The tokenizer of the folder, in which the image has a token: config.json's, or image_token at a free id.

    LLaVA's code marks the image by the index -200, outside the vocabulary; on a device it is a token like any other,
    whose embedding is never read. Raises CheckpointError for a tokenizer that cannot be read, or lacks a token.
    """
    text = _tokenizer_text(folder)
    path = folder / TOKENIZER
    tokenizer = parse_tokenizer(text, path)
    number = None
    if image_token is not None:
        given = config.get("image_token_index", config.get("image_token_id"))
        number = given if isinstance(given, int) and given >= 0 else None
        known = tokenizer.id_to_token(number) if number is not None else None
        if known is not None:
            image_token = known
        elif tokenizer.token_to_id(image_token) is not None:
            number = tokenizer.token_to_id(image_token)
        else:
            number = number or max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
            text, tokenizer = _with_token(text, path, image_token, number, vocabulary_size)
    return Tokens(text, tokenizer, image_token, number, _end_token(folder, config, tokenizer))


def _tokenizer_text(folder: Path) -> bytes:
    path = folder / TOKENIZER
    if path.is_file():
        return path.read_bytes()
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_vocabulary(folder).to_str().encode()
    raise CheckpointError(
        f"{TOKENIZER} is missing in {folder}, and so are vocab.json and merges.txt",
        hint="Copy the tokenizer's files from the model's source.",
    )


def _from_vocabulary(folder: Path) -> Tokenizer:
    """Qwen2's tokenizer, from the files that its slow tokenizer saves: vocab.json, merges.txt, and the added tokens."""
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as cause:  # the library raises bare Exception for all that it cannot read
        raise CheckpointError(
            f"vocab.json and merges.txt in {folder} are no byte-level BPE vocabulary: {cause}",
            hint="Copy both from the model's source.",
        ) from cause
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for number, token in sorted(_added_tokens(folder).items()):
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != number:
            raise CheckpointError(
                f"{folder}: the added token {token.content!r} has the id {number}, which does not follow vocab.json's",
                hint="Save the tokenizer anew as tokenizer.json, with transformers' AutoTokenizer.",
            )
    return tokenizer


def _added_tokens(folder: Path) -> dict[int, AddedToken]:
    path = folder / "tokenizer_config.json"
    listed = read_object(path).get("added_tokens_decoder", {}) if path.is_file() else {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    found = {
        int(number): AddedToken(each["content"], **{flag: bool(each.get(flag, False)) for flag in flags})
        for number, each in listed.items()
    }
    path = folder / "added_tokens.json"
    if not found and path.is_file():
        found = {number: AddedToken(token, special=True) for token, number in read_object(path).items()}
    return found


def _with_token(text: bytes, path: Path, token: str, number: int, vocabulary_size: int) -> tuple[bytes, Tokenizer]:
    if number >= vocabulary_size:
        raise CheckpointError(
            f"{path} does not know the token {token!r}, and of the embedding's {vocabulary_size} rows none is free",
            hint="The image needs a row of the embedding to stand for it: add one, or take the model's own tokenizer.",
        )
    values = json.loads(text)
    added = {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    values["added_tokens"] = sorted([*values.get("added_tokens", []), added], key=lambda each: each["id"])
    changed = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    tokenizer = parse_tokenizer(changed, path)
    if tokenizer.token_to_id(token) != number:
        raise CheckpointError(
            f"{path}: the token {token!r} cannot have the id {number}, since ids before it are not in use",
            hint="Take a tokenizer.json in which the image token is known.",
        )
    return changed, tokenizer


def _end_token(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> str:
    """What ends an answer: generation_config.json's (first) eos_token_id, else config.json's, else the tokenizer's."""
    path = folder / "generation_config.json"
    generation = read_object(path) if path.is_file() else {}
    number = generation.get("eos_token_id", config.get("eos_token_id"))
    number = number[0] if isinstance(number, list) and number else number
    if isinstance(number, int):
        token = tokenizer.id_to_token(number)
        if token is None:
            raise CheckpointError(
                f"{folder}: eos_token_id is {number}, which {TOKENIZER} does not know",
                hint="Take tokenizer.json, config.json and generation_config.json from the same model.",
            )
        return str(token)
    path = folder / "tokenizer_config.json"
    token = read_object(path).get("eos_token") if path.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise CheckpointError(
            f"{folder} does not say which token ends an answer: eos_token_id is missing in config.json",
            hint="Add eos_token_id there, or eos_token in tokenizer_config.json.",
        )
    return token
