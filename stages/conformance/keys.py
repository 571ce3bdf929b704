"""The keys of the conformance vectors: published, private half and all, so that anybody can make the same signatures.

They follow from words in this file. No app may ever trust them; no key of a real release signs what is malformed.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from stages.release.signing.keys import ORDER, SigningKey, private_pem, public_key

NAMES = ("signer", "other")
WORDS = "conformance vectors of tapeout, published test key, never to be trusted by an app: "
README = """# Published test keys

Both halves of these keys are public: `*.published-test.key` sign, `*.pub` verify, and whoever reads this has them.
They sign the conformance vectors, malformed manifests among them. **No app, device or repository may trust them.**
The vectors are verified with `signer.pub` alone; `other.pub` stands for a key that is not trusted.
"""


@cache
def published_key(name: str) -> SigningKey:
    """Return the published P-256 key of that name, the same one everywhere."""
    from cryptography.hazmat.primitives.asymmetric import ec

    number = int.from_bytes(hashlib.sha256((WORDS + name).encode()).digest(), "big") % (ORDER - 1) + 1
    private = ec.derive_private_key(number, ec.SECP256R1())
    return SigningKey(public_key(private.public_key(), f"{name}.pub", Path(name)), private)


def write_keys(folder: Path) -> None:
    """Write folder/keys: both halves of each key, and a README that says what they are."""
    keys = folder / "keys"
    keys.mkdir()
    (keys / "README.md").write_text(README, encoding="utf-8")
    for name in NAMES:
        (keys / f"{name}.published-test.key").write_bytes(private_pem(published_key(name), None))
        (keys / f"{name}.pub").write_bytes(published_key(name).public.pem)
