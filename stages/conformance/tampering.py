"""Tampered bundles with the refusal expected of each: damaged files, wrong signatures, malformed manifests."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.conformance.changes import (
    BUNDLE,
    MANIFEST,
    PROVENANCE,
    SIGNATURE,
    Change,
    append,
    flip,
    remove,
    replace,
    truncate,
)  # fmt: skip
from stages.conformance.envelopes import wrong_envelopes, wrong_signatures
from stages.conformance.keys import published_key
from stages.conformance.malformed import malformed, smallest, written
from stages.conformance.statements import payload, statement, wrong_statements
from stages.release.manifest import Manifest, parse
from stages.release.signing.dsse import IN_TOTO, sign_envelope
from stages.release.signing.model_signature import sign_model

LARGE = 64 << 10  # bytes: from here on a file's first and last byte are damaged too
Case = dict[str, Any]


@dataclass
class Tampering:
    """The cases of one bundle. vectors: the folder that is being written; manifest, statement: the bundle's."""

    vectors: Path
    manifest: Manifest
    statement: dict[str, Any]
    written: dict[bytes, str] = field(default_factory=dict)

    def refused(self) -> Iterator[Case]:
        """Yield what must be refused: {name, changes, error}."""
        for name, changes in self.damaged():
            yield {"name": name, "changes": changes, "error": "integrity"}
        for name, changes in self.unsigned():
            yield {"name": name, "changes": changes, "error": "signature"}
        for name, changes in self.formless():
            yield {"name": name, "changes": changes, "error": "manifest"}

    def accepted(self) -> Iterator[Case]:
        """Yield what must be taken: {name, changes}."""
        yield {"name": "as it is", "changes": []}
        yield {"name": "signed by its provenance alone", "changes": [remove(SIGNATURE)]}
        yield {"name": "signed by the model signature alone", "changes": [remove(PROVENANCE)]}
        both = sign_envelope(payload(self.statement), IN_TOTO, [published_key("other"), published_key("signer")])
        yield {"name": "a second signature, by a key that is not trusted", "changes": [self.put(PROVENANCE, both)]}
        small = self.signed(written(smallest(self.manifest)))
        yield {"name": "the smallest manifest", "changes": small}

    def damaged(self) -> Iterator[tuple[str, list[Change]]]:
        files = self.manifest.files
        for each in files:
            path = f"{BUNDLE}/{each.path}"
            yield f"{each.path}: a bit in the middle", [flip(path, each.size // 2)]
            if each.size >= LARGE:
                yield f"{each.path}: a bit of the first byte", [flip(path, 0, 0x80)]
                yield f"{each.path}: a bit of the last byte", [flip(path, each.size - 1, 0x10)]
        large = max(files, key=lambda file: file.size)
        path = f"{BUNDLE}/{large.path}"
        yield f"{large.path}: without its last byte", [truncate(path, large.size - 1)]
        yield f"{large.path}: its first half", [truncate(path, large.size // 2)]
        yield f"{large.path}: empty", [truncate(path, 0)]
        yield f"{large.path}: one byte more", [append(path, b"\0")]
        yield f"{large.path}: missing", [remove(path)]
        small = min(files, key=lambda file: file.size)
        yield f"{small.path}: missing", [remove(f"{BUNDLE}/{small.path}")]
        yield f"{small.path}: a newline more", [append(f"{BUNDLE}/{small.path}", b"\n")]
        yield "two files are damaged", [flip(path, 1), flip(f"{BUNDLE}/{small.path}", 0)]
        again = copy.deepcopy(self.manifest.value)
        again["files"][0]["size"] += 1
        yield "a signed manifest whose size of a file is wrong", self.signed(written(again))
        again = copy.deepcopy(self.manifest.value)
        again["files"][0]["sha256"] = "0" * 64
        yield "a signed manifest whose sha256 of a file is wrong", self.signed(written(again))
        again = copy.deepcopy(self.manifest.value)
        again["files"].append({"path": "missing.bin", "size": 0, "sha256": "0" * 64})
        yield "a signed manifest that lists a file which is not there", self.signed(written(again))

    def unsigned(self) -> Iterator[tuple[str, list[Change]]]:
        data, other = self.manifest.data, published_key("other")
        digit = re.search(rb'"sha256": ?"[0-9a-f]*?([0-9])', data)
        assert digit is not None
        yield "manifest: another digit in a sha256", [flip(MANIFEST, digit.start(1))]
        yield "manifest: a newline more", [append(MANIFEST, b"\n")]
        newer = json.dumps({**self.manifest.value, "version": "999.0.0"}, indent=2, sort_keys=True).encode()
        yield "manifest: another version", [self.put(MANIFEST, newer)]
        yield "manifest and a file changed together", self.matching()
        yield "nobody has signed it", [remove(PROVENANCE), remove(SIGNATURE)]
        by_other = sign_envelope(payload(self.statement), IN_TOTO, [other])
        model_by_other = sign_model(self.manifest, other)
        changes = [self.put(PROVENANCE, by_other), self.put(SIGNATURE, model_by_other)]
        yield "signed by a key that is not trusted", changes
        yield "provenance by a key that is not trusted", changes[:1]
        yield "model signature by a key that is not trusted", changes[1:]
        strange = self.another()
        by_signer = sign_envelope(payload(statement(strange, strange.digest)), IN_TOTO, [published_key("signer")])
        model_by_signer = sign_model(strange, published_key("signer"))
        changes = [self.put(PROVENANCE, by_signer), self.put(SIGNATURE, model_by_signer)]
        yield "the signatures of another bundle", changes
        yield "the model signature of another bundle", changes[1:]
        yield "the model signature of another bundle, and no provenance", [*changes[1:], remove(PROVENANCE)]
        for name, wrong in wrong_statements(self.manifest, strange):
            envelope = sign_envelope(wrong, IN_TOTO, [published_key("signer")])
            yield f"provenance that {name}", [self.put(PROVENANCE, envelope)]
        for name, wrong in wrong_envelopes(payload(self.statement)):
            yield f"provenance: {name}", [self.put(PROVENANCE, wrong)]
        for name, wrong in wrong_signatures(self.manifest):
            yield f"model signature: {name}", [self.put(SIGNATURE, wrong)]
        yield (
            "the sidecars in each other's place",
            [
                self.put(PROVENANCE, (self.vectors / SIGNATURE).read_bytes()),
                self.put(SIGNATURE, (self.vectors / PROVENANCE).read_bytes()),
            ],
        )
        yield "provenance: a bit in the middle", [flip(PROVENANCE, (self.vectors / PROVENANCE).stat().st_size // 2)]
        yield "model signature: a bit in the middle", [flip(SIGNATURE, (self.vectors / SIGNATURE).stat().st_size // 2)]

    def formless(self) -> Iterator[tuple[str, list[Change]]]:
        yield "manifest: empty", [truncate(MANIFEST, 0)]
        yield "manifest: its first half", [truncate(MANIFEST, len(self.manifest.data) // 2)]
        yield "manifest: a letter behind its end", [append(MANIFEST, b"x")]
        for name, data in malformed(self.manifest):
            yield name, self.signed(data)

    def signed(self, manifest: bytes) -> list[Change]:
        """Have other bytes as the manifest, signed by the trusted key: by a provenance alone, which is short."""
        digest = Manifest(manifest, {}).digest
        envelope = sign_envelope(payload(statement(self.manifest, digest)), IN_TOTO, [published_key("signer")])
        return [self.put(MANIFEST, manifest), self.put(PROVENANCE, envelope), remove(SIGNATURE)]

    def matching(self) -> list[Change]:
        """Change a file and the manifest's sha256 of it."""
        listed = min(self.manifest.files, key=lambda file: file.size)
        value = copy.deepcopy(self.manifest.value)
        data = (self.vectors / BUNDLE / listed.path).read_bytes()[:-1] + b"\0"
        entry = next(each for each in value["files"] if each["path"] == listed.path)
        entry["sha256"] = hashlib.sha256(data).hexdigest()
        return [self.put(MANIFEST, written(value)), self.put(f"{BUNDLE}/{listed.path}", data)]

    def another(self) -> Manifest:
        """Return the manifest of another version of the bundle."""
        return parse(written({**smallest(self.manifest), "version": "999.0.0"}), "another version")

    def put(self, file: str, data: bytes) -> Change:
        """Have other bytes in a file: they lie in tampered/, each once."""
        if data not in self.written:
            (self.vectors / "tampered").mkdir(exist_ok=True)
            self.written[data] = f"tampered/{len(self.written):03}"
            (self.vectors / self.written[data]).write_bytes(data)
        return replace(file, self.written[data])
