"""Two versions one after the other, of which an SDK takes the newer, refuses the older; and the rollout's buckets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stages.conformance.changes import MANIFEST, PROVENANCE, SIGNATURE, Change
from stages.conformance.keys import published_key
from stages.conformance.malformed import written
from stages.conformance.statements import payload, statement
from stages.conformance.tampering import Tampering
from stages.release.history.rollout import bucket
from stages.release.manifest import parse
from stages.release.signing.dsse import IN_TOTO, sign_envelope
from stages.release.signing.model_signature import sign_model


def updates(tampering: Tampering) -> list[dict[str, Any]]:
    """Return [{name, first, then, error}]: `first` is opened and in place; then `then` is what the server has.

    error: null where it is to be used, "rollback" where it is refused, and the first stays.
    """

    def version(name: str) -> list[Change]:
        value = {**tampering.manifest.value, "version": name}
        manifest = parse(written(value), name)
        envelope = sign_envelope(payload(statement(manifest, manifest.digest)), IN_TOTO, [published_key("signer")])
        signature = sign_model(manifest, published_key("signer"))
        files = ((MANIFEST, manifest.data), (PROVENANCE, envelope), (SIGNATURE, signature))
        return [tampering.put(file, data) for file, data in files]

    cases = (
        ("a newer version", "1.0.0", "1.1.0", None), ("an older version", "1.1.0", "1.0.0", "rollback"),
        ("older by number, not by letter", "1.10.0", "1.9.0", "rollback"),
        ("the release after its candidate", "2.0.0-rc.1", "2.0.0", None),
        ("a candidate after its release", "2.0.0", "2.0.0-rc.1", "rollback"),
        ("the same version, built again", "1.0.0", "1.0.0+2", None),
    )  # fmt: skip
    return [
        {"name": name, "first": version(first), "then": version(then), "error": error}
        for name, first, then, error in cases
    ]


def rollout() -> Iterator[dict[str, Any]]:
    """Yield the bucket of some installations."""
    salts = ("", "salt", "2f1c9d", "\u00e4\u20ac\U0001f600", "a:b", "0" * 64)
    names = ("", "installation", "00000000-0000-4000-8000-000000000000", "b:c", "\u65e5\u672c", " ")
    for salt in salts:
        for installation in names:
            yield {"salt": salt, "installation": installation, "bucket": bucket(installation, salt)}
