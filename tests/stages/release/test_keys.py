"""Keys: files, passphrases, ids, and what is refused."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import SSlibKey

from pipelines.errors import ConfigError
from pipelines.project import Project
from stages.release.commands.key import key as command
from stages.release.layout import Releases
from stages.release.signing.keys import KINDS, ORDER, load_public_key, load_signing_key, new_key, trusted_keys


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_signs_alike_each_time_and_its_public_half_verifies(kind: str, tmp_path: Path) -> None:
    made = new_key(tmp_path / "key", kind)
    loaded, public = load_signing_key(tmp_path / "key"), load_public_key(tmp_path / "key.pub")
    signature = made.sign(b"data")
    assert signature == loaded.sign(b"data") and made == loaded and made.public == public
    assert public.verify(signature, b"data") and public.kind == kind and public.name == "key"
    assert not public.verify(signature, b"other") and not public.verify(signature[:-1], b"data")
    assert not new_key(tmp_path / "other", kind).public.verify(signature, b"data")


def test_a_signature_of_p256_has_a_low_s(tmp_path: Path) -> None:
    made = new_key(tmp_path / "key")
    for number in range(32):
        signature = made.sign(b"%d" % number)
        assert decode_dss_signature(signature)[1] <= ORDER // 2
        assert made.public.verify(signature, b"%d" % number) and made.public.has_one_form(signature)


@pytest.mark.parametrize("kind", KINDS)
def test_tuf_takes_the_same_key_under_the_same_id(kind: str, tmp_path: Path) -> None:
    made = new_key(tmp_path / "key", kind)
    assert made.public.tuf_key() == SSlibKey.from_crypto(made.public.public)
    assert made.public.keyid == SSlibKey.from_crypto(made.public.public).keyid
    signer = made.tuf_signer()
    assert signer.public_key.keyid == made.public.keyid
    signature = signer.sign(b"data")
    assert signature.signature == signer.sign(b"data").signature
    signer.public_key.verify_signature(signature, b"data")
    with pytest.raises(UnverifiedSignatureError):
        signer.public_key.verify_signature(signature, b"other")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_private_key_is_encrypted_for_its_owner_alone_and_openssl_reads_it(tmp_path: Path) -> None:
    made = new_key(tmp_path / "deep" / "key", passphrase="correct horse")
    path = tmp_path / "deep" / "key"
    assert path.stat().st_mode & 0o777 == 0o600 and b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
    assert load_signing_key(path, "correct horse") == made
    done = subprocess.run(
        ["openssl", "pkey", "-in", path, "-passin", "pass:correct horse", "-pubout"], capture_output=True, check=True
    )
    assert done.stdout == made.public.pem == path.with_name("key.pub").read_bytes()


def test_the_passphrase_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, clear = new_key(tmp_path / "key", passphrase="correct horse"), new_key(tmp_path / "clear")
    monkeypatch.setenv("TAPEOUT_PASSPHRASE", "correct horse")
    assert load_signing_key(tmp_path / "key") == made and load_signing_key(tmp_path / "clear") == clear
    with pytest.raises(ConfigError, match="is not the passphrase"):
        load_signing_key(tmp_path / "key", "wrong")
    monkeypatch.delenv("TAPEOUT_PASSPHRASE")
    with pytest.raises(ConfigError, match="nobody is here to type") as found:
        load_signing_key(tmp_path / "key")
    assert "TAPEOUT_PASSPHRASE" in found.value.hint


def pem(private: object, public: bool = False) -> bytes:
    if public:
        return private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]


RSA, P384 = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())
OWN = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))  # the same in each process: ids of tests hold it


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"", "no private key in PEM"),
        (b"\x80junk", "no private key in PEM"),
        (pem(OWN)[:60], "no private key in PEM"),
        (b"x" * 70_000, "more than 65536 bytes"),
        (pem(OWN, public=True), "is a public key, and signing takes the private one"),
        (pem(RSA), "kind that is not supported: RSA"),
        (pem(P384), "kind that is not supported: secp384r1"),
    ],
)
def test_what_is_no_signing_key(data: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    if data is not None:
        path.touch(0o600)
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=said) as found:
        load_signing_key(path)
    assert found.value.hint and str(path) in found.value.message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no public key in PEM"),
        (pem(OWN), "is a private key, and verifying takes the public one"),
        (pem(OWN, public=True)[:50], "no public key in PEM"),
        (pem(RSA, public=True), "kind that is not supported: RSA"),
        (pem(P384, public=True), "kind that is not supported: secp384r1"),
    ],
)
def test_what_is_no_public_key(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(data)
    with pytest.raises(ConfigError, match=said) as found:
        load_public_key(tmp_path / "key")
    assert found.value.hint


def test_a_private_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    new_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="its mode is 0640") as found:
        load_signing_key(tmp_path / "key")
    assert "chmod 600" in found.value.hint


@pytest.mark.parametrize("taken", ["key", "key.pub"])
def test_a_key_is_never_overwritten(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=f"{taken} exists, and a key is never overwritten"):
        new_key(tmp_path / "key")
    assert [each.name for each in tmp_path.iterdir()] == [taken]


def test_trusted_are_those_given_or_those_of_the_project(tmp_path: Path) -> None:
    releases = Releases(Project(tmp_path))
    assert trusted_keys([], releases) == ()
    one, two = new_key(tmp_path / "releases/keys/one"), new_key(tmp_path / "two")
    assert trusted_keys([], releases) == (one.public,)
    two_pub = tmp_path / "two.pub"
    assert trusted_keys([two_pub, two_pub], releases) == (two.public,)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    project, path = Project(tmp_path), tmp_path / "key"
    monkeypatch.setenv("TAPEOUT_PASSPHRASE", "correct horse")
    assert command(["new", str(path), "--type", "ed25519", "--json"], project) == 0
    made = json.loads(capsys.readouterr().out)
    assert command(["show", str(path) + ".pub", "--json"], project) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "key", "keyid": made["keyid"], "type": "ed25519"}
    monkeypatch.setenv("TAPEOUT_NEW_PASSPHRASE", "another horse")
    assert command(["passphrase", str(path)], project) == 0
    assert load_signing_key(path, "another horse").public.keyid == made["keyid"]
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="is not the passphrase"):
        load_signing_key(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs an action"),
        (["nwe", "x"], "did you mean 'new'?"),
        (["new", "x", "--type", "p265", "--no-passphrase"], "did you mean 'p256'?"),
        (["new", "x"], "nobody is here to type one"),
        (["show", "x.pub"], "the key cannot be read"),
    ],
)
def test_mistakes(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAPEOUT_PASSPHRASE", raising=False)
    with pytest.raises(ConfigError) as found:
        command(words, Project(tmp_path))
    assert said in str(found.value) and not [*tmp_path.iterdir()]


def test_a_short_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPEOUT_PASSPHRASE", "short")
    with pytest.raises(ConfigError, match="5 characters; at least 8"):
        command(["new", str(tmp_path / "key")], Project(tmp_path))
