"""DSSE envelopes: what others read, and what is refused."""

import base64
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from securesystemslib.dsse import Envelope

from pipelines.errors import VerificationError
from stages.release.signing.dsse import IN_TOTO, open_envelope, pae, peek_envelope, sign_envelope
from stages.release.signing.keys import ORDER
from tests.stages.release.signed import key

PAYLOAD = b'{"a": 1}'


def test_the_encoding_that_is_signed() -> None:
    """The example of the protocol's own document."""
    assert pae(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_signed_and_opened_by_both_kinds_of_key() -> None:
    keys = [key(), key("second", "ed25519")]
    data = sign_envelope(PAYLOAD, IN_TOTO, keys)
    assert data == sign_envelope(PAYLOAD, IN_TOTO, keys) and b"\n" not in data
    opened = open_envelope(data, IN_TOTO, [each.public for each in reversed(keys)], "x")
    assert opened.payload == PAYLOAD == peek_envelope(data, "x")
    assert set(opened.keyids) == {each.public.keyid for each in keys}
    one = open_envelope(data, IN_TOTO, [keys[1].public, key("third").public], "x")
    assert one.keyids == (keys[1].public.keyid,)


def test_securesystemslib_reads_ours_and_signs_what_we_read() -> None:
    data = sign_envelope(PAYLOAD, IN_TOTO, [key()])
    theirs = Envelope.from_dict(json.loads(data))
    assert [*theirs.verify([key().public.tuf_key()], 1)] == [key().public.keyid]
    assert theirs.payload == PAYLOAD and theirs.payload_type == IN_TOTO
    signed = Envelope(PAYLOAD, IN_TOTO, {})
    signed.sign(key().tuf_signer())
    text = json.dumps(signed.to_dict(), separators=(",", ":")).encode()
    assert open_envelope(text, IN_TOTO, [key().public], "x").payload == PAYLOAD


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    value = json.loads(sign_envelope(PAYLOAD, IN_TOTO, [key()]))
    change(value)
    return json.dumps(value, separators=(",", ":")).encode()


def other_bits(value: dict[str, Any]) -> None:
    """Say the same bytes by another last character of the base64."""
    assert len(PAYLOAD) % 3 == 2 and value["payload"].endswith("0=")
    value["payload"] = value["payload"][:-2] + "1="
    assert base64.b64decode(value["payload"], validate=True) == PAYLOAD


def high_s(value: dict[str, Any]) -> None:
    """Put (r, n - s) for (r, s): as good a signature, made without the key."""
    r, s = decode_dss_signature(base64.b64decode(value["signatures"][0]["sig"]))
    value["signatures"][0]["sig"] = base64.b64encode(encode_dss_signature(r, ORDER - s)).decode()


SIGNATURE = {"keyid": "a", "sig": "QQ=="}
CASES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "not utf-8": (b'{"payload":"\xff"}', "not JSON"),
    "nested too deep": (b"[" * 200_000, "not JSON"),
    "a huge number": (b'{"payload":' + b"9" * 5000 + b"}", "not JSON"),
    "a list": (b"[]", "list instead of a JSON object"),
    "too large": (b" " * (16 << 20) + b"{}", "an envelope of more than"),
    "a name twice": (
        sign_envelope(PAYLOAD, IN_TOTO, [key()]).replace(b"{", b'{"payload":"",', 1),
        "'payload' stands twice",
    ),
    "a member more": (edited(lambda value: value.update(more=1)), "and no more"),
    "a member less": (edited(lambda value: value.pop("payloadType")), "and no more"),
    "another type of payload": (
        edited(lambda value: value.update(payloadType="text/plain")),
        "its payload is 'text/plain'",
    ),
    "a number as type": (edited(lambda value: value.update(payloadType=5)), "must hold payload"),
    "no signature": (edited(lambda value: value.update(signatures=[])), "1 to 64 signatures"),
    "many signatures": (edited(lambda value: value.update(signatures=[SIGNATURE] * 65)), "1 to 64 signatures"),
    "no list of signatures": (edited(lambda value: value.update(signatures="x")), "1 to 64 signatures"),
    "a signature of nothing": (edited(lambda value: value.update(signatures=[5])), "keyid and sig"),
    "an id with a line": (edited(lambda value: value["signatures"][0].update(keyid="a\nb")), "keyid and sig"),
    "two signatures of a key": (
        edited(lambda value: value["signatures"].append(value["signatures"][0])),
        "two signatures of the key",
    ),
    "no base64": (edited(lambda value: value.update(payload="%%%")), "not base64"),
    "no text": (edited(lambda value: value.update(payload=None)), "not base64: NoneType"),
    "base64 with spaces": (edited(lambda value: value.update(payload=value["payload"] + " ")), "not base64"),
    "base64 of other bits": (edited(other_bits), "not base64: its last character"),
    "spaces": (sign_envelope(PAYLOAD, IN_TOTO, [key()]) + b"\n", "in fewer bytes"),
    "another order": (
        edited(lambda value: value.update(payload=value.pop("payload"))),
        "or in another order",
    ),
    "another payload": (
        edited(lambda value: value.update(payload=base64.b64encode(b"{}").decode())),
        "it was changed after signing",
    ),
    "another signature": (
        edited(lambda value: value["signatures"][0].update(sig="QQ==")),
        "it was changed after signing",
    ),
    "the other form of a signature": (edited(high_s), "has a high s, and is expected with the low one"),
    "a key of somebody else's": (sign_envelope(PAYLOAD, IN_TOTO, [key("third")]), "signed by no key that is trusted"),
    "a false id": (
        edited(lambda value: value["signatures"][0].update(keyid=key("third").public.keyid)),
        f"no key that is trusted, but by {key('third').public.keyid}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_refused(case: str) -> None:
    data, said = CASES[case]
    with pytest.raises(VerificationError) as found:
        open_envelope(data, IN_TOTO, [key().public], "where.json")
    assert said in found.value.message and found.value.message.startswith("where.json: ") and found.value.hint


def test_no_key_is_trusted() -> None:
    with pytest.raises(VerificationError, match="no key that is trusted") as found:
        open_envelope(sign_envelope(PAYLOAD, IN_TOTO, [key()]), IN_TOTO, [], "x")
    assert "trusted: none" in found.value.hint and "--key" in found.value.hint


def test_any_other_bytes_are_refused_and_nothing_else_happens() -> None:
    data, draw = sign_envelope(PAYLOAD, IN_TOTO, [key()]), random.Random(0)
    for _ in range(500):
        other = bytearray(data)
        other[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        with pytest.raises(VerificationError):
            open_envelope(bytes(other), IN_TOTO, [key().public], "x")
