"""Signing a bundle: what lies beside it then, and what is not signed. The model signature is OpenSSF's own."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, VerificationError
from pipelines.project import Project
from stages.release.bundles.archive import pack
from stages.release.commands.sign import sign as command
from stages.release.layout import sidecars
from stages.release.manifest import read
from stages.release.signing.dsse import IN_TOTO, open_envelope
from stages.release.signing.model_signature import check_model_signature, sign_model
from stages.release.signing.signing import sign_bundle
from tests.stages.release.bundles import make_bundle
from tests.stages.release.signed import key, key_file, signed, statement_of

# names that sort differently as text and part by part, and those that the library leaves out
NAMES = {
    "a/b": b"1",
    "a-b": b"2",
    "a/é b/x.bin": b"3",
    "a.b": b"",
    ".gitignore": b"*",
    ".github/x": b"y",
    "b/.git": b"",
}


@pytest.mark.parametrize("archived", [False, True])
def test_what_lies_beside_a_signed_bundle(archived: bool, tmp_path: Path) -> None:
    path = signed(tmp_path / "pixel-8", archived=archived)
    manifest = read(tmp_path / "pixel-8")
    beside = sidecars(path)
    assert beside.provenance == tmp_path / "pixel-8.provenance.json"
    assert beside.signature == tmp_path / "pixel-8.model.sig"
    opened = open_envelope(beside.provenance.read_bytes(), IN_TOTO, [key().public], "x")
    assert json.loads(opened.payload) == statement_of(manifest)
    assert check_model_signature(beside.signature.read_bytes(), manifest, [key().public], "x") == key().public


def test_signing_twice_gives_the_same_bytes_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = signed(tmp_path / "pixel-8")
    before = {each.name: each.read_bytes() for each in tmp_path.glob("pixel-8.*")}
    sign_bundle(path, [key()], statement_of(read(path)))
    assert {each.name: each.read_bytes() for each in tmp_path.glob("pixel-8.*")} == before and len(before) == 2
    sign_bundle(path, [key("third")], None)
    assert [each.name for each in tmp_path.glob("pixel-8.*")] == ["pixel-8.model.sig"]
    assert (tmp_path / "pixel-8.model.sig").read_bytes() != before["pixel-8.model.sig"]


def test_a_folder_and_its_archive_have_the_same_signatures(tmp_path: Path) -> None:
    path = signed(tmp_path / "pixel-8")
    before = {each.name: each.read_bytes() for each in tmp_path.glob("pixel-8.*")}
    pack(path, tmp_path / "elsewhere" / "pixel-8.tar")
    sign_bundle(tmp_path / "elsewhere" / "pixel-8.tar", [key()], statement_of(read(path)))
    after = {each.name: each.read_bytes() for each in (tmp_path / "elsewhere").glob("*.[jms]*")}
    assert after == before


def test_an_ed25519_key_signs_the_provenance_alone(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "pixel-8")
    ed25519 = key("second", "ed25519")
    beside = sign_bundle(tmp_path / "pixel-8", [ed25519], statement_of(manifest))
    assert beside.provenance.is_file() and not beside.signature.exists()
    with pytest.raises(ConfigError, match="a model signature takes a P-256 key, and there is no provenance"):
        sign_bundle(tmp_path / "pixel-8", [ed25519], None)
    both = sign_bundle(tmp_path / "pixel-8", [ed25519, key()], statement_of(manifest))
    envelope = json.loads(both.provenance.read_bytes())
    assert [each["keyid"] for each in envelope["signatures"]] == [ed25519.public.keyid, key().public.keyid]
    assert both.signature.is_file()


@pytest.mark.parametrize("archived", [False, True])
def test_only_what_is_as_its_manifest_says_is_signed(archived: bool, tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "pixel-8")
    path = spoilt = tmp_path / "pixel-8"
    data = (path / "decoder.onnx.data").read_bytes()
    if archived:
        path = spoilt = tmp_path / "pixel-8.tar"
        pack(tmp_path / "pixel-8", path)
        spoilt.write_bytes(spoilt.read_bytes().replace(data, data[:-1] + bytes([data[-1] ^ 1])))
    else:
        (path / "decoder.onnx.data").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(VerificationError, match=r"decoder\.onnx\.data: its sha256 is"):
        sign_bundle(path, [key()], statement_of(manifest))
    assert not [*tmp_path.glob("*.sig"), *tmp_path.glob("*.json")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "0" * 64}, "manifest.json was changed after that"),
        (
            {"version": "2.0.0"},
            "it is the provenance of another bundle: demo 2.0.0 for pixel-8, and this is demo 1.0.0",
        ),
        ({"digest": "0" * 64, "device": "other"}, "it is the provenance of another bundle: demo 1.0.0 for other"),
    ],
)
def test_the_provenance_of_another_bundle_is_not_signed(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "pixel-8")
    with pytest.raises(VerificationError) as found:
        sign_bundle(tmp_path / "pixel-8", [key()], statement_of(manifest, **change))
    assert said in found.value.message and "run 'tapeout build'" in found.value.hint
    assert not [*tmp_path.glob("*.sig"), *tmp_path.glob("*.json")]


def test_model_signing_accepts_ours_and_ours_accepts_the_librarys(tmp_path: Path) -> None:
    from model_signing import signing, verifying

    path = signed(tmp_path / "pixel-8", files=NAMES)
    ours, theirs = sidecars(path).signature, tmp_path / "theirs.sig"
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key_file().with_name("release.pub"))
    verifier.verify(path, ours)
    signing.Config().use_elliptic_key_signer(private_key=key_file()).sign(path, theirs)
    manifest = read(path)
    assert check_model_signature(theirs.read_bytes(), manifest, [key().public], "x") == key().public
    one, other = (json.loads(each.read_bytes()) for each in (ours, theirs))
    payloads = [json.loads(base64.b64decode(each["dsseEnvelope"].pop("payload"))) for each in (one, other)]
    for each in (one, other):
        each["dsseEnvelope"]["signatures"][0].pop("sig")  # theirs is another each time
    assert one == other and payloads[0]["predicate"]["resources"] == payloads[1]["predicate"]["resources"]
    assert payloads[0]["subject"][0]["digest"] == payloads[1]["subject"][0]["digest"]
    (path / "a-b").write_bytes(b"x")
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=key_file().with_name("release.pub"))
    with pytest.raises(ValueError, match="Hash mismatch for 'a-b'"):
        verifier.verify(path, ours)


def of(data: bytes, change: Any) -> bytes:
    value = json.loads(data)
    change(value)
    return json.dumps(value).encode()


MATERIAL = "verificationMaterial"
MALFORMED: dict[str, tuple[Any, str]] = {
    "another media type": (lambda value: value.update(mediaType="x"), "it must be a sigstore bundle"),
    "a member more": (lambda value: value.update(more=1), "it must be a sigstore bundle"),
    "no key": (lambda value: value.update({MATERIAL: {}}), "KeyError: 'publicKey'"),
    "a list": (lambda value: value.update({MATERIAL: []}), "TypeError"),
    "no signature": (lambda value: value["dsseEnvelope"].update(signatures=[]), "IndexError"),
    "two signatures": (lambda value: value["dsseEnvelope"]["signatures"].append({}), "one signature, by a public key"),
    "a log entry": (lambda value: value[MATERIAL]["tlogEntries"].append({}), "one signature, by a public key"),
    "a hint that is no text": (lambda value: value[MATERIAL]["publicKey"].update(hint=5), "one signature, by a public"),
    "another hint": (lambda value: value[MATERIAL]["publicKey"].update(hint="ab"), "sha256 'ab'"),
    "another type": (lambda value: value["dsseEnvelope"].update(payloadType="x"), "one signature, by a public key"),
    "another payload": (lambda value: value["dsseEnvelope"].update(payload="e30="), "it was changed after signing"),
    "no base64": (lambda value: value["dsseEnvelope"].update(payload="%"), "not base64"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_model_signature_that_is_none(case: str, tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "pixel-8")
    change, said = MALFORMED[case]
    with pytest.raises(VerificationError) as found:
        check_model_signature(of(sign_model(manifest, key()), change), manifest, [key().public], "x")
    assert said in found.value.message


def made_up(manifest: Any, change: Any) -> bytes:
    """A model signature whose statement somebody with the key has written otherwise."""
    from stages.release.signing.dsse import pae

    value = json.loads(sign_model(manifest, key()))
    payload = of(base64.b64decode(value["dsseEnvelope"]["payload"]), change)
    value["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    value["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(key().sign(pae(payload, IN_TOTO))).decode()
    return json.dumps(value).encode()


STATEMENTS: dict[str, tuple[Any, str]] = {
    "another predicate": (lambda value: value.update(predicateType="x"), "its statement must be of"),
    "another method": (lambda value: value["predicate"]["serialization"].update(method="shards"), "by sha256"),
    "another hash": (lambda value: value["predicate"]["resources"][0].update(algorithm="blake3"), "by sha256"),
    "another sum": (lambda value: value["subject"][0]["digest"].update(sha256="00"), "must follow from them"),
    "two subjects": (lambda value: value["subject"].append(1), "its statement must be of"),
    "a digest that is none": (lambda value: value["predicate"]["resources"][0].update(digest="zz"), "ValueError"),
    "a name that is none": (lambda value: value["predicate"]["resources"][0].update(name=[]), "TypeError"),
    "a number as name": (lambda value: value["predicate"]["resources"][0].update(name=5), "each file once"),
    "no predicate": (lambda value: value.pop("predicate"), "KeyError"),
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_a_model_signature_of_something_else(case: str, tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "pixel-8")
    change, said = STATEMENTS[case]
    with pytest.raises(VerificationError) as found:
        check_model_signature(made_up(manifest, change), manifest, [key().public], "x")
    assert said in found.value.message


def test_a_model_signature_of_other_files(tmp_path: Path) -> None:
    old = make_bundle(tmp_path / "old", files={"gone": b"x"})
    data = sign_model(old, key())
    new = make_bundle(tmp_path / "new")
    with pytest.raises(VerificationError, match="'gone' was removed after this was signed"):
        check_model_signature(data, new, [key().public], "x")
    with pytest.raises(VerificationError, match="'gone' was added after this was signed"):
        check_model_signature(sign_model(new, key()), old, [key().public], "x")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project(tmp_path)
    manifest = make_bundle(tmp_path / "artifacts/pixel-8")
    words = [str(tmp_path / "artifacts/pixel-8"), "--key", str(key_file())]
    with pytest.raises(ConfigError, match="no build here has noted") as found:
        command(words, project)
    assert "--no-provenance" in found.value.hint and "tapeout build" in found.value.hint
    assert command([*words, "--no-provenance", "--json"], project) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bundle"] == manifest.digest and told["provenance"] is None
    assert told["keys"] == [{"keyid": key().public.keyid, "name": "release"}]
    assert Path(told["signature"]).is_file()
    assert command([*words, "--no-provenance"], project) == 0
    out = capsys.readouterr().out
    assert manifest.digest in out and key().public.keyid in out and "what it was built from is not signed" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "with what?"),
        (["--key", "k", "--identity"], "either --key or --identity"),
        (["--identity", "--no-provenance"], "leaves nothing to sign"),
        (["--kye", "k"], "did you mean '--key'?"),
        (["--key", "k", "--no-provenance"], "cannot be read: No such file"),
    ],
)
def test_mistakes(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        command([str(tmp_path / "absent"), *words], Project(tmp_path))
    assert said in str(found.value)


def test_the_copy_of_a_bundle_needs_its_sidecars(tmp_path: Path) -> None:
    path = signed(tmp_path / "pixel-8")
    shutil.copytree(path, tmp_path / "copy")
    assert not sidecars(tmp_path / "copy").signature.exists() and sidecars(path).signature.is_file()
