"""Keys that sign: ECDSA over P-256 (the default) and Ed25519, in PEM files.

A private key is PKCS8, encrypted with a passphrase, and only its owner may read it; beside FILE lies FILE.pub, which is
for everybody. A key is named by its id as securesystemslib computes it, so that DSSE and TUF agree.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.errors import ConfigError, suggestion
from pipelines.files import storing

if TYPE_CHECKING:
    from securesystemslib.signer import Key, Signer

    from stages.release.layout import Releases

KINDS = {"p256": "ECDSA over P-256, with SHA-256", "ed25519": "Ed25519"}
PASSPHRASE = "TAPEOUT_PASSPHRASE"
MAXIMUM = 64 << 10  # bytes of a key file
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256's group: FIPS 186-4, D.1.2.3
SCHEMES = {"p256": ("ecdsa", "ecdsa-sha2-nistp256"), "ed25519": ("ed25519", "ed25519")}
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
MAKE_ONE = "'tapeout key new FILE' makes a pair: FILE, which signs, and FILE.pub, which verifies"


@dataclass(frozen=True)
class PublicKey:
    """keyid: sha256 in hex. kind: one of KINDS. pem: SubjectPublicKeyInfo. name: of its file, for messages."""

    keyid: str
    kind: str
    pem: bytes
    name: str
    public: Any = field(compare=False, repr=False)

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Say whether the signature over the data is this key's. P-256: in DER."""
        from cryptography.exceptions import InvalidSignature

        try:
            self.public.verify(signature, data, *algorithm(self.kind))
        except InvalidSignature:
            return False
        return True

    def has_one_form(self, signature: bytes) -> bool:
        """Say whether a signature that verifies is the one of the two that `SigningKey.sign` would give: P-256 takes
        (r, s) and (r, n - s), and whoever has one can make the other without the key. Ed25519 has one alone."""
        return self.kind != "p256" or low_s(signature) == signature

    def tuf_key(self) -> Key:
        """Return the key as TUF's metadata holds it."""
        from securesystemslib.signer import SSlibKey

        kind, scheme = SCHEMES[self.kind]
        return SSlibKey(self.keyid, kind, scheme, {"public": key_value(self.public, self.kind)})

    @property
    def title(self) -> str:
        return f"{self.name} ({self.keyid[:16]})"


@dataclass(frozen=True)
class SigningKey:
    """A private key. It signs; nothing else of it leaves this object."""

    public: PublicKey
    private: Any = field(compare=False, repr=False)

    def sign(self, data: bytes) -> bytes:
        """Return a signature, the same each time: P-256's nonce follows from the data (RFC 6979), and s is low."""
        signature: bytes = self.private.sign(data, *algorithm(self.public.kind, signs=True))
        return low_s(signature) if self.public.kind == "p256" else signature

    def tuf_signer(self) -> Signer:
        """Return what python-tuf signs with."""
        from securesystemslib.signer import Signature, Signer

        class Bound(Signer):
            """This very key; securesystemslib's own CryptoSigner draws a new nonce each time."""

            def __init__(self, key: SigningKey) -> None:
                self.key = key

            @property
            def public_key(self) -> Key:
                return self.key.public.tuf_key()

            def sign(self, payload: bytes) -> Signature:
                return Signature(self.key.public.keyid, self.key.sign(payload).hex())

            @classmethod
            def from_priv_key_uri(cls, *_: Any) -> NoReturn:
                raise NotImplementedError("a key is loaded from its file, by load_signing_key")

        return Bound(self)

    @cached_property
    def pkcs8(self) -> bytes:
        """The private key in DER, not encrypted."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        data: bytes = self.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return data


def new_key(path: Path, kind: str = "p256", passphrase: str | None = None) -> SigningKey:
    """Make a pair of keys: `path`, which only its owner may read, and path.pub. Neither may exist.

    passphrase: None leaves the key in clear. Raises ConfigError, StoreError.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    check_new(path, kind)
    private: Any = ec.generate_private_key(ec.SECP256R1()) if kind == "p256" else ed25519.Ed25519PrivateKey.generate()
    key = SigningKey(public_key(private.public_key(), path.name, path), private)
    create(path, private_pem(key, passphrase), 0o600)
    create(public_path(path), key.public.pem, 0o644)
    return key


def check_new(path: Path, kind: str) -> None:
    """Raise ConfigError where no key can be made: of an unknown kind, or over another."""
    if kind not in KINDS:
        raise ConfigError(f"there is no key of type '{kind}'", hint=suggestion(kind, KINDS, "types"))
    for each in (path, public_path(path)):
        if os.path.lexists(each):
            raise ConfigError(f"{each} exists, and a key is never overwritten", hint="name another file")


def public_path(path: Path) -> Path:
    """Where the public half of a private key's file lies."""
    return path.with_name(f"{path.name}.pub")


def private_pem(key: SigningKey, passphrase: str | None) -> bytes:
    """Return a key as its file holds it. Raises ConfigError for an empty passphrase."""
    if passphrase is None:
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        clear: bytes = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return clear
    if not passphrase:
        raise ConfigError("an empty passphrase protects nothing", hint="give one, or --no-passphrase")
    from stages.release.signing.key_encryption import encrypted_pem

    return encrypted_pem(key.pkcs8, passphrase)


def create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist, with exactly this mode. Raises StoreError."""
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, NEW, mode)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
        except BaseException:
            path.unlink()
            raise


def load_signing_key(path: Path, passphrase: str | None = None) -> SigningKey:
    """Return the private key in a file. passphrase: else $TAPEOUT_PASSPHRASE, else it is asked for on the terminal.

    Raises ConfigError for what is not a key, not such a key, not private, readable by others, or opened by another
    passphrase.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = read_key(path, private=True)
    if b"PRIVATE KEY" not in data and b"PUBLIC KEY" in data:
        raise ConfigError(
            f"{path} is a public key, and signing takes the private one",
            hint=f"it lies beside it: {path.with_suffix('')}" if path.suffix == ".pub" else MAKE_ONE,
        )
    secret = None
    if b"ENCRYPTED" in data:
        secret = passphrase or os.environ.get(PASSPHRASE) or asked(path)
    try:
        private: Any = load_pem_private_key(data, secret.encode() if secret else None)
    except UnsupportedAlgorithm as cause:
        raise unsupported(path, str(cause)) from cause
    except (ValueError, TypeError) as cause:
        if secret is not None and "password" in str(cause).lower():
            raise ConfigError(
                f"{path}: this is not the passphrase", hint=f"it came from ${PASSPHRASE}, or was typed"
            ) from cause
        raise ConfigError(f"{path} is no private key in PEM", hint=MAKE_ONE) from cause
    return SigningKey(public_key(private.public_key(), path.name, path), private)


def asked(path: Path) -> str:
    """Ask for a key's passphrase on the terminal. Raises ConfigError where there is none."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{path} is encrypted, and nobody is here to type its passphrase", hint=f"set ${PASSPHRASE}")
    return getpass.getpass(f"passphrase of {path}: ")


def load_public_key(path: Path) -> PublicKey:
    """Return the public key in a file, named as the file is. Raises ConfigError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_key(path)
    if b"PRIVATE KEY" in data:
        raise ConfigError(
            f"{path} is a private key, and verifying takes the public one",
            hint=f"name {public_path(path)}, and give the private one to nobody",
        )
    try:
        return public_key(load_pem_public_key(data), path.name, path)
    except UnsupportedAlgorithm as cause:
        raise unsupported(path, str(cause)) from cause
    except ValueError as cause:
        raise ConfigError(f"{path} is no public key in PEM", hint=MAKE_ONE) from cause


def trusted_keys(paths: Sequence[Path], releases: Releases) -> tuple[PublicKey, ...]:
    """Return the keys in these files, or where none is named those in releases/keys; each once. Raises ConfigError."""
    found = {key.keyid: key for key in map(load_public_key, paths or sorted(releases.keys.glob("*.pub")))}
    return tuple(found.values())


def read_key(path: Path, private: bool = False) -> bytes:
    """Return what a key's file holds. Raises ConfigError, also where others may read a private one."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAXIMUM + 1)
    except OSError as cause:
        hint = MAKE_ONE if cause.errno == errno.ENOENT else ""
        raise ConfigError(f"{path}: the key cannot be read: {cause.strerror or cause}", hint=hint) from cause
    if len(data) > MAXIMUM:
        raise ConfigError(f"{path} is no key: it has more than {MAXIMUM} bytes", hint=MAKE_ONE)
    if private and b"PRIVATE KEY" in data and os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"{path}: others than its owner may use this private key: its mode is {stat.S_IMODE(mode):04o}",
            hint=f"'chmod 600 {path}'; if others were here, make a new key and distrust this one",
        )
    return data


def public_key(public: Any, name: str, path: Path) -> PublicKey:
    """Return a public key of cryptography's as ours. Raises ConfigError for a kind that is not supported."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        kind = "p256"
    elif isinstance(public, ed25519.Ed25519PublicKey):
        kind = "ed25519"
    else:
        curve = public.curve.name if isinstance(public, ec.EllipticCurvePublicKey) else ""
        raise unsupported(path, curve or type(public).__name__.removesuffix("PublicKey"))
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key, scheme = SCHEMES[kind]
    # securesystemslib's default id: the sha256 of the key in OLPC's canonical JSON
    text = f'{{"keytype":"{key}","keyval":{{"public":"{key_value(public, kind)}"}},"scheme":"{scheme}"}}'
    return PublicKey(hashlib.sha256(text.encode()).hexdigest(), kind, pem, name.removesuffix(".pub"), public)


def key_value(public: Any, kind: str) -> str:
    """Return a public key as TUF's metadata spells it: P-256 as PEM, Ed25519 as its 32 bytes in hex."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if kind == "ed25519":
        return str(public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex())
    return str(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def algorithm(kind: str, signs: bool = False) -> list[Any]:
    """Return what cryptography's sign() and verify() take after the data."""
    if kind == "ed25519":
        return []
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    return [ec.ECDSA(SHA256(), deterministic_signing=signs)]


def low_s(signature: bytes) -> bytes:
    """Return a P-256 signature in DER with the lower of its two s. Raises ValueError for what is none."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, min(s, ORDER - s))


def unsupported(path: Path, kind: str) -> ConfigError:
    return ConfigError(
        f"{path}: a key of a kind that is not supported: {kind}",
        hint=f"supported are {', '.join(f'{name} ({title})' for name, title in KINDS.items())}; {MAKE_ONE}",
    )
