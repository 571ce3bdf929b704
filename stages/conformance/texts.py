"""text -> ids -> text: the tokenizers and the texts of the conformance vectors, by the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

# As in Qwen2's tokenizer.json.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
VOCABULARY = 700
TEXTS = (
    # words and blanks
    "", " ", "  ", "   a", "a   ", "a  b", "a   b    c", "\t", "\ta\tb\t", " \t \t ", "what is it?", " what is it? ",
    "What Is It?", "WHAT IS IT?", "red square, blue circle", "describe the image", "is there a red star?",
    # newlines
    "\n", "\r\n", "\r", "\n\n", "a\nb", "a\r\nb", "a \n b", "a\n\n\nb", "a\r\rb\n\r",
    "line one\nline two\r\nline three\r",
    "  \n  \n  ", "text\n", "\ntext", ".\n\n", "a\u2028b\u2029c", "a\u0085b", "a\x0bb\x0cc",
    # contractions
    "it's", "IT'S", "It'S we'Re they'VE I'm I'M you'll YOU'LL he'd HE'D don't DON'T", "'s", "''s", "rock'n'roll",
    "'tis the dogs' 'twas", "it\u2019s", "it'\u017f",
    # numbers
    "0", "12", "123456789", "3.14159", "1,000,000", "2026-11-22", "x2y3", "\u0663\u0664", "\u00bd \u00b2 \u2167",
    "1e-5",
    # signs
    "!?", "...", "a,b;c:d", "(a)[b]{c}<d>", "a+b=c", "#tag @name $5 50% a&b", "--", "\u2014", "\u201cquoted\u201d",
    "\\n", "/a/b",
    # other scripts, composed and not
    "na\u00efve", "nai\u0308ve", "\u00c5ngstr\u00f6m", "A\u030angstro\u0308m", "\u1e9b\u0323", "\ufb01n",
    "\u2126 \u212b \u00b5",
    "\u4f60\u597d\uff0c\u4e16\u754c", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\ud55c\uad6d\uc5b4",
    "\u1112\u1161\u11ab", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643",
    "\u05e9\u05dc\u05d5\u05dd", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0928\u093f a\u0301\u0323 q\u0307\u0323",
    # emoji
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f44d\U0001f3fd",
    "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "a\U0001f600b \U0001f600", "\u0031\ufe0f\u20e3",
    # what is no letter and no sign
    "\x00", "\x7f\x1b", "\ufeffa", "a\u00a0b", "\u3000a\u2003b", "a\u200bb", "\u00ad", "\ufffd", "\U0010ffff", "\ue000",
    # special tokens inside a text, and what only looks like one
    "<|im_start|>", "<|im_end|>", "a<|im_end|>b", " <|im_start|> ", "<|im_end|><|im_end|>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start", "<|IM_END|>", "<image", "< image>", "<|im_end|", "<|<|im_end|>|>", "<tool>", "a<tool> b",
    "<|endoftext|>",
    # long
    "how many red squares are left of the blue circle, and which of them is above the star? " * 12, "a" * 300, " " * 40,
    "\u00e4\U0001f600\n" * 60,
)  # fmt: skip
IMAGE_TEXT = "a <image> b"
CORPUS = (
    "what is in the image? describe the picture in one sentence. how many people are there, and where do they stand?",
    "It's a red square; they're two blue circles, we've seen them. I'm sure you'll like it. He'd say don't.",
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG.",
    "na\u00efve caf\u00e9 \u00fcber stra\u00dfe \u00e5ngstr\u00f6m \u4f60\u597d\u4e16\u754c \u65e5\u672c\u8a9e",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "\U0001f600\U0001f600 \U0001f44d\U0001f44d",
    "line one\nline two\n\nline three\r\n    indented\n\tby a tab",
)


def write_tokenizers(folder: Path, bundle: Path) -> list[dict[str, Any]]:
    """Write tokenizers/qwen2.json; return the entries of "tokenizers": the bundle's own, and one as Qwen2's is."""
    (folder / "tokenizers").mkdir()
    path = folder / "tokenizers" / "qwen2.json"
    qwen2().save(str(path))
    files = {"bundle/tokenizer.json": bundle / "tokenizer.json", "tokenizers/qwen2.json": path}
    return [{"file": file, "texts": entries(Tokenizer.from_file(str(each)))} for file, each in files.items()]


def entries(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return each text with its ids, and what these say without special tokens."""
    found = []
    for text in dict.fromkeys([*TEXTS, IMAGE_TEXT]):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        found.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    return found


def qwen2() -> Tokenizer:
    """Return a small tokenizer made as Qwen2's is: NFC, its pattern, bytes, BPE, special tokens after the vocabulary,
    and one added token that is not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return tokenizer


def streams(file: str, path: Path) -> list[dict[str, Any]]:
    """Return answers as a model may give them, token by token: what they say as a whole, without outer blanks.

    Bytes that are no UTF-8, characters that are cut off at the end, blanks outside and special tokens among them.
    """
    tokenizer = Tokenizer.from_file(str(path))
    letters = {byte: tokenizer.token_to_id(letter) for byte, letter in byte_letters().items()}
    special = tokenizer.token_to_id("<|im_start|>")
    found = []
    for data in (
        b"", b"a", b"  a b  ", b"\n", b" \t\n ", "\u00e4\u20ac\U0001f600".encode(), "\U0001f600".encode()[:3],
        b"a" + "\u20ac".encode()[:2],
        b"\xff", b"a\xffb", b"\xc3(", b"\xe2\x82", b"\xe2\x82a", b"\xf0\x9f\x98", b"\xf0\x9f\x98\x80\xf0\x9f",
        b"\x80\x80a",
        b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", "\x1ca\x85".encode(), "\u00a0a\u3000".encode(),
        "\ufeffa\ufeff".encode(),
        "\u200ba\u200b".encode(), b"a\x00", "e\u0301".encode(), b"a \xff ", "a \u20ac".encode() + b" ",
    ):  # fmt: skip
        ids = [letters[byte] for byte in data]
        for each in (ids, [special, *ids[:1], special, *ids[1:], special] if ids else []):
            if each:
                text = tokenizer.decode(each, skip_special_tokens=True).strip()
                found.append({"file": file, "ids": each, "text": text})
    return found


def byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte in a byte-level vocabulary: GPT-2's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}
