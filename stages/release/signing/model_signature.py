"""The OpenSSF model signature of a bundle's folder: what `model_signing` 1.1 writes with an elliptic-curve key.

A sigstore bundle (https://docs.sigstore.dev/about/bundle/) in JSON around an in-toto statement that names every file of
the folder, manifest.json among them, by sha256. It is written here from digests that are known already: the library
would hash everything again, and takes seconds to import. `model_signing verify key` accepts ours, and this module
accepts what the library has signed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.errors import VerificationError
from stages.release.manifest import AGAIN, NAME, Manifest, object_of
from stages.release.signing.dsse import IN_TOTO, Envelope, decoded, pae, trust_hint, value_of
from stages.release.signing.keys import PublicKey, SigningKey

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
IGNORED = (".git", ".gitattributes", ".github", ".gitignore")  # what the library leaves out of every model
MAXIMUM = 16 << 20  # bytes of a signature's file


def sign_model(manifest: Manifest, key: SigningKey) -> bytes:
    """Return the signature of the folder that the manifest describes. key: P-256, the one kind that the format has."""
    resources = [
        {"name": name, "algorithm": "sha256", "digest": digest} for name, digest in digests_of(manifest).items()
    ]
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": manifest.title, "digest": {"sha256": root_of(each["digest"] for each in resources)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(IGNORED),
            },
            "resources": resources,
        },
    }
    payload = json.dumps(statement, indent=2).encode()
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint_of(key.public)}, "tlogEntries": []},
        "dsseEnvelope": value_of(Envelope(payload, IN_TOTO, {"": key.sign(pae(payload, IN_TOTO))})),
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def check_model_signature(data: bytes, manifest: Manifest, keys: Sequence[PublicKey], where: str) -> PublicKey:
    """Return the trusted key that signed exactly the files that the manifest describes. Raises VerificationError."""
    envelope, hint = read_bundle(data, where)
    key = next((key for key in keys if key.kind == "p256" and hint_of(key) == hint), None)
    if key is None:
        raise VerificationError(
            f"{where}: signed by no key that is trusted, but by the one whose PEM has the sha256 {hint[:64]!r}",
            hint=trust_hint(keys),
        )
    if not key.verify(envelope.signatures[""], pae(envelope.payload, IN_TOTO)):
        raise VerificationError(
            f"{where}: the signature of {key.title} does not belong to it: it was changed after signing", hint=AGAIN
        )
    check_files(signed_digests(envelope.payload, where), digests_of(manifest), where)
    return key


def digests_of(manifest: Manifest) -> dict[str, str]:
    """Return {path: sha256} of all that the library would hash, in its order: part by part."""
    files = {file.path: file.sha256 for file in manifest.files} | {NAME: manifest.digest}
    kept = [path for path in files if path.split("/")[0] not in IGNORED]
    return {path: files[path] for path in sorted(kept, key=lambda path: path.split("/"))}


def root_of(digests: Iterable[str]) -> str:
    """Return the sha256 over all digests, which is that of the model."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def hint_of(key: PublicKey) -> str:
    """Return how the format names a key: the sha256 of its PEM."""
    return hashlib.sha256(key.pem).hexdigest()


def read_bundle(data: bytes, where: str) -> tuple[Envelope, str]:
    """Return the envelope in a sigstore bundle, and the hint of its key. Raises VerificationError."""
    if len(data) > MAXIMUM:
        raise VerificationError(f"{where}: a signature of more than {MAXIMUM} bytes", hint=AGAIN)
    value = object_of(data, where)
    if value.get("mediaType") != MEDIA_TYPE or set(value) != {"mediaType", "verificationMaterial", "dsseEnvelope"}:
        raise malformed(where, f"it must be a sigstore bundle around a DSSE envelope, {MEDIA_TYPE}")
    material, inner = value["verificationMaterial"], value["dsseEnvelope"]
    try:
        hint, signature = material["publicKey"]["hint"], inner["signatures"][0]
        expected = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": inner["payload"],
                "payloadType": IN_TOTO,
                "signatures": [{"sig": signature["sig"], "keyid": ""}],
            },
        }
    except (KeyError, TypeError, IndexError) as cause:
        raise malformed(where, f"{type(cause).__name__}: {cause}") from cause
    if value != expected or not isinstance(hint, str):
        raise malformed(where, "it must have one signature, by a public key, and nothing more")
    return Envelope(decoded(inner["payload"], where), IN_TOTO, {"": decoded(signature["sig"], where)}), hint


def signed_digests(payload: bytes, where: str) -> dict[str, str]:
    """Return {path: sha256} as a signed statement has it. Raises VerificationError."""
    value = object_of(payload, where)
    try:
        subject, predicate = value["subject"], value["predicate"]
        method, root = predicate["serialization"], subject[0]["digest"]["sha256"]
        resources: list[dict[str, Any]] = predicate["resources"]
        found = {each["name"]: each["digest"] for each in resources}
        summed = root_of(each["digest"] for each in resources)
        plain = all(each["algorithm"] == "sha256" and isinstance(each["name"], str) for each in resources)
        files = (method["method"], method["hash_type"]) == ("files", "sha256")
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as cause:
        raise malformed(where, f"{type(cause).__name__}: {cause}") from cause
    if (value.get("_type"), value.get("predicateType")) != (STATEMENT, PREDICATE) or len(subject) != 1:
        raise malformed(where, f"its statement must be of {STATEMENT}, with the predicate {PREDICATE}")
    if not (plain and files and summed == root and len(found) == len(resources)):
        raise malformed(where, "it must name each file once, by sha256, and its subject must follow from them")
    return found


def check_files(signed: Mapping[str, str], listed: Mapping[str, str], where: str) -> None:
    """Raise VerificationError unless both name the same files with the same digests."""
    for name in sorted({*signed, *listed}):
        if signed.get(name) != listed.get(name):
            how = "changed" if name in signed and name in listed else "removed" if name in signed else "added"
            raise VerificationError(f"{where}: {name!r} was {how} after this was signed", hint=AGAIN)


def malformed(where: str, why: str) -> VerificationError:
    return VerificationError(f"{where}: no model signature as it should be: {why}", hint=AGAIN)
