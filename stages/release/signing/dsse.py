"""DSSE envelopes (https://github.com/secure-systems-lab/dsse): a payload, its type, and signatures over both.

They are read strictly: what this module would not write byte for byte is refused, so that two envelopes that differ are
never taken for the same. Whatever the bytes are, reading them raises VerificationError at worst.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import VerificationError
from stages.release.manifest import AGAIN, object_of
from stages.release.signing.keys import PublicKey, SigningKey

IN_TOTO = "application/vnd.in-toto+json"
MAXIMUM = 16 << 20  # bytes of an envelope
SIGNATURES = 64  # at most, in one envelope


@dataclass(frozen=True)
class Opened:
    """payload: what was signed. keyids: of the trusted keys that signed it, at least one."""

    payload: bytes
    keyids: tuple[str, ...]


@dataclass(frozen=True)
class Envelope:
    """An envelope as it is read. signatures: {key id: signature}, none of them checked."""

    payload: bytes
    payload_type: str
    signatures: dict[str, bytes]


def sign_envelope(payload: bytes, payload_type: str, keys: Sequence[SigningKey]) -> bytes:
    """Return an envelope: one line of JSON without its newline; the same each time for the same keys."""
    signed = pae(payload, payload_type)
    return written(Envelope(payload, payload_type, {key.public.keyid: key.sign(signed) for key in keys}))


def open_envelope(data: bytes, payload_type: str, keys: Sequence[PublicKey], where: str) -> Opened:
    """Return the payload of an envelope that one of the keys, at least, has signed. where: names it in messages.

    Raises VerificationError, also where the signature of any of the keys is wrong, or is not the one form of it that
    this module writes: with another form, the same envelope would have another sha256.
    """
    envelope = read_envelope(data, where)
    if envelope.payload_type != payload_type:
        raise VerificationError(
            f"{where}: its payload is {envelope.payload_type!r}, expected {payload_type!r}", hint=AGAIN
        )
    signed = pae(envelope.payload, payload_type)
    found = [key for key in keys if key.keyid in envelope.signatures]
    for key in found:
        if not key.verify(envelope.signatures[key.keyid], signed):
            raise VerificationError(
                f"{where}: the signature of {key.title} does not belong to it: it was changed after signing", hint=AGAIN
            )
        if not key.has_one_form(envelope.signatures[key.keyid]):
            raise VerificationError(
                f"{where}: the signature of {key.title} has a high s, and is expected with the low one: somebody has "
                "rewritten it, or another tool has signed",
                hint=f"{AGAIN}, or sign it again ('tapeout sign', 'tapeout release')",
            )
    if not found:
        raise VerificationError(
            f"{where}: signed by no key that is trusted, but by {', '.join(envelope.signatures)}",
            hint=trust_hint(keys),
        )
    return Opened(envelope.payload, tuple(key.keyid for key in found))


def trust_hint(keys: Sequence[PublicKey]) -> str:
    """Say which keys are trusted, and how another comes to be."""
    trusted = ", ".join(key.title for key in keys) or "none"
    return f"trusted: {trusted}. To trust another, have its .pub from the signer: --key FILE.pub, or in releases/keys"


def peek_envelope(data: bytes, where: str) -> bytes:
    """Return the payload without any trust in it, for messages only. Raises VerificationError."""
    return read_envelope(data, where).payload


def read_envelope(data: bytes, where: str) -> Envelope:
    """Return what an envelope holds, unchecked but well-formed. Raises VerificationError."""
    if len(data) > MAXIMUM:
        raise VerificationError(f"{where}: an envelope of more than {MAXIMUM} bytes", hint=AGAIN)
    value = object_of(data, where)
    payload_type, signatures = value.get("payloadType"), value.get("signatures")
    if set(value) != {"payload", "payloadType", "signatures"} or not isinstance(payload_type, str):
        raise malformed(where, "it must hold payload, payloadType and signatures, and no more")
    if not isinstance(signatures, list) or not 0 < len(signatures) <= SIGNATURES:
        raise malformed(where, f"it must have 1 to {SIGNATURES} signatures")
    found: dict[str, bytes] = {}
    for each in signatures:
        if not isinstance(each, dict) or set(each) != {"keyid", "sig"} or not plain_keyid(each["keyid"]):
            raise malformed(where, "a signature must hold keyid and sig, and no more")
        if each["keyid"] in found:
            raise malformed(where, f"two signatures of the key {each['keyid']}")
        found[each["keyid"]] = decoded(each["sig"], where)
    envelope = Envelope(decoded(value["payload"], where), payload_type, found)
    if written(envelope) != data:
        raise malformed(where, "the same could be said in fewer bytes, or in another order")
    return envelope


def plain_keyid(keyid: Any) -> bool:
    """Say whether this may be a key's id; it is printed."""
    return isinstance(keyid, str) and 0 < len(keyid) <= 128 and keyid.isascii() and keyid.isalnum()


def decoded(text: Any, where: str) -> bytes:
    """Return what standard base64 stands for. Raises VerificationError."""
    try:
        if not isinstance(text, str):
            raise ValueError(f"{type(text).__name__} instead of text")
        data = base64.b64decode(text, validate=True)
        if base64.b64encode(data).decode() != text:
            raise ValueError("its last character stands for more bits than there are")
        return data
    except (ValueError, binascii.Error) as cause:
        raise malformed(where, f"not base64: {cause}") from cause


def malformed(where: str, why: str) -> VerificationError:
    return VerificationError(f"{where}: no envelope as it should be: {why}", hint=AGAIN)


def written(envelope: Envelope) -> bytes:
    """Return an envelope's one form in bytes."""
    return json.dumps(value_of(envelope), separators=(",", ":"), ensure_ascii=False).encode()


def value_of(envelope: Envelope) -> dict[str, Any]:
    return {
        "payload": base64.b64encode(envelope.payload).decode(),
        "payloadType": envelope.payload_type,
        "signatures": [
            {"keyid": keyid, "sig": base64.b64encode(signature).decode()}
            for keyid, signature in envelope.signatures.items()
        ],
    }


def pae(payload: bytes, payload_type: str) -> bytes:
    """Return the bytes that are signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
