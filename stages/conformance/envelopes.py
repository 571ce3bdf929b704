"""Envelopes and model signatures that are not as they should be, most of them made with the trusted key."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

from stages.conformance.keys import published_key
from stages.release.manifest import Manifest
from stages.release.signing.dsse import IN_TOTO, Envelope, pae, sign_envelope, value_of
from stages.release.signing.keys import ORDER
from stages.release.signing.model_signature import root_of, sign_model

ZERO = bytes.fromhex("3006020100020100")  # a signature in DER whose r and s are 0


def wrong_envelopes(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of what must not be taken for an envelope around the payload."""
    signer = published_key("signer")
    keyid, signed = signer.public.keyid, signer.sign(pae(payload, IN_TOTO))
    right = value_of(Envelope(payload, IN_TOTO, {keyid: signed}))
    text = written(right)
    yield "the other form of the signature: a high s", with_signature(right, high_s(signed))
    yield "a signature of zeros", with_signature(right, ZERO)
    yield "no signature's bytes", with_signature(right, b"")
    yield "a signature of 64 bytes, not in DER", with_signature(right, raw(signed))
    yield "a signature with a byte behind it", with_signature(right, signed + b"\0")
    yield "a signature of the payload alone, without its type", with_signature(right, signer.sign(payload))
    yield "another type of payload", sign_envelope(payload, "application/json", [signer])
    yield (
        "the trusted key's id over another key's signature",
        with_signature(right, published_key("other").sign(pae(payload, IN_TOTO))),
    )
    yield "no signatures", written({**right, "signatures": []})
    yield "the same signature twice", written({**right, "signatures": right["signatures"] * 2})
    yield "65 signatures", written({**right, "signatures": right["signatures"] + [
        {"keyid": f"{number:064x}", "sig": "AA=="} for number in range(64)
    ]})  # fmt: skip
    yield "a member too many", written({**right, "note": ""})
    yield "a member too few", written({key: value for key, value in right.items() if key != "payloadType"})
    yield (
        "a key id with a line feed",
        written({**right, "signatures": [{"keyid": f"{keyid}\n", "sig": right["signatures"][0]["sig"]}]}),
    )
    yield "blanks between members", json.dumps(right).encode()
    yield "a newline at its end", text + b"\n"
    yield "members in another order", written(dict(reversed(right.items())))
    yield "a member twice", text.replace(b"{", b'{"payload":"",', 1)
    yield (
        "base64 without its padding",
        sign_envelope(payload + b" " * (2 - len(payload) % 3), IN_TOTO, [signer]).replace(b'=","', b'","'),
    )
    addressed = [{**each, "sig": each["sig"].replace("+", "-").replace("/", "_")} for each in right["signatures"]]
    yield "base64 for addresses", written({**right, "signatures": addressed})
    yield "no JSON", b"hello"
    yield "no byte", b""


def wrong_signatures(manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of what must not be taken for the bundle's model signature."""
    signer = published_key("signer")
    data = sign_model(manifest, signer)
    right = json.loads(data)
    inner = right["dsseEnvelope"]
    told = json.loads(base64.b64decode(inner["payload"]))

    def about(change: Callable[[dict[str, Any]], object]) -> bytes:
        """Return a model signature, rightly signed, of a statement that was changed."""
        value = json.loads(json.dumps(told))
        change(value)
        payload = json.dumps(value, indent=2).encode()
        envelope = value_of(Envelope(payload, IN_TOTO, {"": signer.sign(pae(payload, IN_TOTO))}))
        return written({**right, "dsseEnvelope": envelope})

    def summed(value: dict[str, Any]) -> None:
        digests = (each["digest"] for each in value["predicate"]["resources"])
        value["subject"][0]["digest"]["sha256"] = root_of(digests)

    def without_one(value: dict[str, Any]) -> None:
        value["predicate"]["resources"].pop()
        summed(value)

    def with_another(value: dict[str, Any]) -> None:
        value["predicate"]["resources"].append({"name": "zzz", "algorithm": "sha256", "digest": "0" * 64})
        summed(value)

    def with_other_digest(value: dict[str, Any]) -> None:
        value["predicate"]["resources"][0]["digest"] = "0" * 64
        summed(value)

    yield "a file is not named", about(without_one)
    yield "a file too many is named", about(with_another)
    yield "a file has another sha256", about(with_other_digest)
    yield (
        "the subject does not follow from the files",
        about(lambda value: value["subject"][0]["digest"].update(sha256="0" * 64)),
    )
    yield (
        "a file is named twice",
        about(lambda value: value["predicate"]["resources"].append(told["predicate"]["resources"][0])),
    )
    yield "another predicate", about(lambda value: value.update(predicateType="https://model_signing/signature/v0.1"))
    yield "another type of statement", about(lambda value: value.update(_type="https://in-toto.io/Statement/v0.1"))
    yield "another method", about(lambda value: value["predicate"]["serialization"].update(method="shards"))
    yield "another media type", written({**right, "mediaType": "application/vnd.dev.sigstore.bundle.v0.2+json"})
    yield "a member too many", written({**right, "note": ""})
    yield (
        "an entry of a log",
        written({**right, "verificationMaterial": {**right["verificationMaterial"], "tlogEntries": [{}]}}),
    )
    yield "two signatures", written({**right, "dsseEnvelope": {**inner, "signatures": inner["signatures"] * 2}})
    yield (
        "a signature of zeros",
        written(
            {**right, "dsseEnvelope": {**inner, "signatures": [{"sig": base64.b64encode(ZERO).decode(), "keyid": ""}]}}
        ),
    )
    other = base64.b64encode(published_key("other").sign(pae(base64.b64decode(inner["payload"]), IN_TOTO))).decode()
    yield (
        "the trusted key's name over another key's signature",
        written({**right, "dsseEnvelope": {**inner, "signatures": [{"sig": other, "keyid": ""}]}}),
    )
    yield "no JSON", b"hello"
    yield "no byte", b""


def high_s(signature: bytes) -> bytes:
    """Return the other of the two signatures that verify: (r, n - s)."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, ORDER - s)


def raw(signature: bytes) -> bytes:
    """Return r and s in 32 bytes each."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    return b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(signature))


def with_signature(envelope: dict[str, Any], signature: bytes) -> bytes:
    keyid = envelope["signatures"][0]["keyid"]
    return written({**envelope, "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}]})


def written(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
