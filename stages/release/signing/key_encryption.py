"""A private key at rest: PKCS8 under PBES2 (RFC 8018), PBKDF2 with HMAC-SHA-256 and AES-256-CBC, as PEM.

cryptography writes this very form, but with 2,048 rounds, which a graphics card runs some million times a second;
OpenSSL and cryptography read any number of rounds.
"""

from __future__ import annotations

import base64
import hashlib
import os
import textwrap

ROUNDS = 600_000  # OWASP's figure for PBKDF2 with HMAC-SHA-256; some 0.1 s
PBES2 = bytes.fromhex("06092a864886f70d01050d")
PBKDF2 = bytes.fromhex("06092a864886f70d01050c")
HMAC_SHA256 = bytes.fromhex("06082a864886f70d02090500")  # and NULL, its parameters
AES_256_CBC = bytes.fromhex("060960864801650304012a")
SEQUENCE, INTEGER, OCTETS = 0x30, 0x02, 0x04
BLOCK = 16  # bytes of AES


def encrypted_pem(private: bytes, passphrase: str) -> bytes:
    """Return PEM that holds a private key (PKCS8, DER) encrypted with the passphrase."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    salt, start = os.urandom(16), os.urandom(BLOCK)
    key = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), salt, ROUNDS, 32)
    missing = BLOCK - len(private) % BLOCK
    cipher = Cipher(algorithms.AES(key), modes.CBC(start)).encryptor()
    hidden = cipher.update(private + bytes([missing]) * missing) + cipher.finalize()
    rounds = ROUNDS.to_bytes(ROUNDS.bit_length() // 8 + 1, "big")
    derived = der(SEQUENCE, der(OCTETS, salt), der(INTEGER, rounds), der(SEQUENCE, HMAC_SHA256))
    how = der(SEQUENCE, der(SEQUENCE, PBKDF2, derived), der(SEQUENCE, AES_256_CBC, der(OCTETS, start)))
    whole = der(SEQUENCE, der(SEQUENCE, PBES2, how), der(OCTETS, hidden))
    lines = "\n".join(textwrap.wrap(base64.b64encode(whole).decode(), 64))
    return f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{lines}\n-----END ENCRYPTED PRIVATE KEY-----\n".encode()


def der(tag: int, *parts: bytes) -> bytes:
    """Return the parts under one tag, in DER."""
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content
