"""Manifests that are none, each signed by the trusted key: a signature says who wrote it, not that it may be obeyed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from stages.release.manifest import Manifest

ZERO = "0" * 64


def smallest(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest's value without all that may be left out; it keeps to the schema."""
    value = copy.deepcopy(manifest.value)
    model = {"runtime": value["model"]["runtime"], "files": value["model"]["files"]}
    for name in ("preprocessing", "precision", "risks"):
        value.pop(name, None)
    return {**value, "model": model, "weights": [], "validation": {}, "self_test": []}


def malformed(manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of manifests that must be refused for their form."""
    value = smallest(manifest)
    text = written(value)
    for name, path in (
        ("leads out of the folder", "../escape"), ("leads out of the folder further down", "a/../../escape"),
        ("absolute", "/etc/escape"), ("a drive", "C:/escape"), ("backslashes", "..\\escape"),
        ("a part is empty", "a//b"),
        ("a part is a dot", "./a"), ("ends in a slash", "a/"), ("is empty", ""), ("a device of Windows", "NUL.txt"),
        ("ends in a dot", "a."), ("ends in a blank", "a "), ("a line feed", "a\nb"), ("a wildcard", "a*"),
        ("no printable character", "a\u202eb"), ("too long", "a" * 251), ("the manifest itself", "manifest.json"),
        ("the manifest in capitals", "MANIFEST.JSON"), ("twice", "tokenizer.json"),
        ("twice but for case", "Tokenizer.JSON"),
        ("a folder that is a file", "tokenizer.json/a"),
    ):  # fmt: skip
        yield f"a path: {name}", with_file(value, path)
    both = {**value, "files": [*value["files"], file("caf\u00e9"), file("cafe\u0301")]}
    yield "a path: twice but for how an accent is spelled", written(both)
    for name, member, wrong in (
        ("capital letters", "sha256", "A" * 64), ("too short", "sha256", "0" * 63), ("no text", "sha256", 0),
        ("negative", "size", -1), ("no whole number", "size", 1.5), ("text", "size", "1"), ("true", "size", True),
        ("more than 1 TiB", "size", (1 << 40) + 1),
    ):  # fmt: skip
        yield f"{member}: {name}", written({**value, "files": [*value["files"], {**file("a"), member: wrong}]})
    yield "a file with a member too many", written({**value, "files": [*value["files"], {**file("a"), "url": "x"}]})
    yield "no files", written({**value, "files": []})
    yield "files: no list", written({**value, "files": {"a": file("a")}})
    for version in (1, 3, "2"):
        yield f"manifest version {version!r}", written({**value, "manifest_version": version})
    for name in ("files", "model", "name", "version", "self_test"):
        yield f"without its {name}", written({key: each for key, each in value.items() if key != name})
    yield "a member that the schema does not have", written({**value, "scripts": []})
    for member, word in (("name", "a b"), ("name", "../a"), ("version", "1/2"), ("version", ""), ("version", "1\n")):
        yield f"{member} {word!r}", written({**value, member: word})
    yield "a runtime that is none", written({**value, "runtime": "shell"})
    yield "a tokenizer that is not listed", written({**value, "tokenizer": "other.json"})
    yield "a tokenizer outside", written({**value, "tokenizer": "../tokenizer.json"})
    model = {**value["model"], "files": {**value["model"]["files"], "decoder": "other.onnx"}}
    yield "a decoder that is not listed", written({**value, "model": model})
    asked = {"image": "other.png", "question": "what?", "answer": "that"}
    yield "a question whose image is not listed", written({**value, "self_test": [asked]})
    yield "a question without an answer", written({**value, "self_test": [{"image": None, "question": "what?"}]})
    yield "a name twice in one object", text.replace(b'{"', b'{"name":"other","', 1)
    yield "NaN", written({**value, "validation": {"a": "NAN"}}).replace(b'"NAN"', b"NaN")
    yield "Infinity", written({**value, "validation": {"a": "NAN"}}).replace(b'"NAN"', b"-Infinity")
    yield "half a surrogate pair", written({**value, "validation": {"a": "HALF"}}).replace(b"HALF", b"\\ud83d")
    yield "no UTF-8", written({**value, "validation": {"a": "HALF"}}).replace(b"HALF", b"\xff")
    yield "a byte order mark", b"\xef\xbb\xbf" + text
    yield "a comma too many", text[:-1] + b",}"
    yield "a comment", text + b"// signed"
    yield "no JSON", b"hello"
    yield "no object", b"[]"
    yield "null", b"null"
    yield "lists 10,000 deep", b"[" * 10_000 + b"]" * 10_000


def with_file(value: dict[str, Any], path: str) -> bytes:
    return written({**value, "files": [*value["files"], file(path)]})


def file(path: str) -> dict[str, Any]:
    return {"path": path, "size": 0, "sha256": ZERO}


def written(value: dict[str, Any]) -> bytes:
    """Return a manifest's bytes, short."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
