"""A bundle's manifest: what each file is, by size and sha256.

The digest of a bundle is the sha256 of manifest.json itself, so that who trusts it can check all of the bundle. The
schema is manifest.schema.json, beside this file. Whatever lies in a manifest, reading one raises VerificationError at
worst: it may come from anybody.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, VerificationError

NAME = "manifest.json"
MANIFEST_VERSION = 2
SCHEMA = "urn:tapeout:manifest:2"
MAXIMUM = 4 << 20  # bytes of a manifest
AGAIN = "get the bundle again from where it came"
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")  # a name, version or device; the schema's "word"
RESERVED = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class File:
    """A file of a bundle. path: from the bundle's folder, with forward slashes; size in bytes; sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """data: the file's bytes. value: what they say; it keeps to the schema."""

    data: bytes
    value: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """The bundle's digest."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def files(self) -> tuple[File, ...]:
        """All files of the bundle but the manifest, sorted by path."""
        files = (File(each["path"], int(each["size"]), each["sha256"]) for each in self.value["files"])
        return tuple(sorted(files, key=lambda file: file.path))

    @property
    def name(self) -> str:
        return str(self.value["name"])

    @property
    def version(self) -> str:
        return str(self.value["version"])

    @property
    def device(self) -> str:
        return str(self.value["device"]["name"])

    @property
    def runtime(self) -> str:
        return str(self.value["runtime"])

    @property
    def title(self) -> str:
        return f"{self.name} {self.version} for {self.device}"

    @property
    def size(self) -> int:
        """Bytes of all files together, with the manifest."""
        return sum(file.size for file in self.files) + len(self.data)


def parse(data: bytes, where: str) -> Manifest:
    """Return the manifest in the bytes. where: names them in messages. Raises VerificationError."""
    if len(data) > MAXIMUM:
        raise VerificationError(f"{where}: a manifest of {len(data)} bytes; at most {MAXIMUM} are read", hint=AGAIN)
    value = object_of(data, where)
    from jsonschema.exceptions import ValidationError, best_match

    try:
        wrong = best_match(islice(validator().iter_errors(value), 1))  # all of them could be millions
    except (RecursionError, ValidationError, ValueError) as cause:
        raise VerificationError(f"{where}: cannot be held against the schema: {cause}", hint=AGAIN) from cause
    if wrong is not None:
        place = plain_text(".".join(str(part) for part in wrong.absolute_path)) or "the manifest"
        what = wrong.message if len(wrong.message) < 300 else f"{wrong.message[:300]}..."
        raise VerificationError(
            f"{where}: {place}: {what}",
            hint=f"expected manifest version {MANIFEST_VERSION}; {AGAIN}, or build it again",
        )
    check_paths([each["path"] for each in value["files"]], where)
    check_named(value, where)
    return Manifest(data, value)


def read(folder: Path) -> Manifest:
    """Return the manifest of a bundle's folder. Raises ConfigError where it has none, VerificationError."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM + 1)
    except OSError as cause:
        raise ConfigError(
            f"{path} cannot be read: {cause.strerror or cause}",
            hint="a bundle is what a build leaves at artifacts/DEVICE, or its archive",
        ) from cause
    return parse(data, str(path))


def object_of(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in the bytes, in which every name stands once. Raises VerificationError."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (ValueError, RecursionError) as cause:  # UnicodeError is a ValueError
        raise VerificationError(f"{where}: not JSON as it should be: {cause}", hint=AGAIN) from cause
    if not isinstance(value, dict):
        raise VerificationError(f"{where}: {type(value).__name__} instead of a JSON object", hint=AGAIN)
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object. Raises ValueError for a name that stands twice, which one pass finds."""
    value: dict[str, Any] = {}
    for name, each in pairs:
        if name in value:
            raise ValueError(f"{name!r:.100} stands twice in one object")
        value[name] = each
    return value


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON's")


def check_paths(paths: list[str], where: str) -> None:
    """Raise VerificationError unless every path is a plain one, names one file on any file system, and is no folder of
    another's."""
    found = {NAME: NAME}
    for path in paths:
        if not lies_inside(path):
            raise VerificationError(f"{where}: lists {path!r}, which is no path inside the bundle", hint=AGAIN)
        name = folded(path)
        if name in found:
            raise VerificationError(
                f"{where}: lists {path!r} beside {found[name]!r}, which is the same file where neither case nor the "
                "way in which an accent is spelled counts",
                hint=AGAIN,
            )
        found[name] = path
    parts = sorted(name.split("/") for name in found)  # what lies in a folder follows right after it
    for one, next_one in pairwise(parts):
        if next_one[: len(one)] == one:
            file, inner = found["/".join(one)], found["/".join(next_one)]
            raise VerificationError(f"{where}: lists {file!r} as a file and as a folder of {inner!r}", hint=AGAIN)


def folded(path: str) -> str:
    """Return what is equal for the names that some file system takes for one: APFS, NTFS (Unicode's D145, composed)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def check_named(value: dict[str, Any], where: str) -> None:
    """Raise VerificationError unless whatever else the manifest names is a file that it lists; a part of the model may
    be a folder of such files. What is not listed has no sha256, and is opened by nobody."""
    listed = sorted(each["path"] for each in value["files"])
    names = set(listed)
    for member, name in named_in(value):
        if not lies_inside(name):
            raise VerificationError(f"{where}: {member} is {name!r}, which is no path inside the bundle", hint=AGAIN)
        if name not in names and not (member.startswith("model.files.") and is_folder(name, listed)):
            raise VerificationError(
                f"{where}: {member} is '{name}', which it does not list among its files",
                hint=f"only files whose sha256 is known are used; {AGAIN}, or build it again",
            )


def named_in(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every path that a manifest names beside its list of files, with the member that names it."""
    for part, name in value["model"]["files"].items():
        yield f"model.files.{plain_text(part)}", name
    if "tokenizer" in value:
        yield "tokenizer", value["tokenizer"]
    for number, each in enumerate(value["self_test"]):
        if each["image"] is not None:
            yield f"self_test.{number}.image", each["image"]
    for number, name in enumerate(value["licence"]["files"]):
        yield f"licence.files.{number}", name
    for document, name in value["documents"].items():
        yield f"documents.{document}", name


def plain_text(name: str) -> str:
    """Return a member's name as a terminal may show it: it may be anybody's."""
    return ascii(name)[1:-1][:100]


def is_folder(name: str, listed: Sequence[str]) -> bool:
    """Say whether files of the sorted list lie in this folder."""
    place = bisect_left(listed, f"{name}/")
    return place < len(listed) and listed[place].startswith(f"{name}/")


def lies_inside(name: str) -> bool:
    """Say whether a name is a plain path down from the folder: no root, no drive, no '..', no '.', no empty part, no
    device of Windows', no character that a terminal or a file system would take for something else."""
    plain = all(character.isprintable() and character not in '\\:*?"<>|' for character in name)
    return plain and all(is_plain(part) for part in name.split("/"))


def is_plain(part: str) -> bool:
    """Say whether one part of a path names a file on any file system, and only itself."""
    return part not in ("", ".", "..") and not part.endswith((" ", ".")) and not RESERVED.fullmatch(part)


@cache
def validator() -> Any:
    """Return what holds a value against the schema."""
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema_path().read_text(encoding="utf-8")))


def schema_path() -> Path:
    return Path(__file__).with_name("manifest.schema.json")


def write_manifest(folder: Path, value: dict[str, Any]) -> Manifest:
    """Write manifest.json for what lies in the folder: `value` with the version, and "files" filled in.

    Equal values and files give equal bytes. Raises VerificationError for a value that does not keep to the schema.
    """
    files = [asdict(file) for file in files_of(folder)]
    whole = {**value, "schema": SCHEMA, "manifest_version": MANIFEST_VERSION, "files": files}
    text = json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    manifest = parse(text.encode(), str(folder / NAME))
    (folder / NAME).write_bytes(manifest.data)
    return manifest


def files_of(folder: Path) -> list[File]:
    """Return every file of the folder but its manifest, sorted by path."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    paths.pop(NAME, None)
    return [File(name, paths[name].stat().st_size, sha256_of(paths[name])) for name in sorted(paths)]


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
