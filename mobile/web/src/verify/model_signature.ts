import { NAME, type ReadManifest } from "./manifest";
import { decoded, IN_TOTO, MAXIMUM, preAuthentication, refused, unknownSigner } from "./dsse";
import { hasJust, isObject, member, objectOf } from "./json";
import { verifies, type PublicKey } from "./keys";
import { fromHex, sha256Of } from "./sha256";

const MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json";
const STATEMENT = "https://in-toto.io/Statement/v1";
const PREDICATE = "https://model_signing/signature/v1.0";
const IGNORED = [".git", ".gitattributes", ".github", ".gitignore"]; // what model_signing leaves out of every model

/** Throws "signature" unless a trusted P-256 key has signed exactly the files that the manifest lists, and the manifest: an
 * OpenSSF model signature, as stages/release/signing/model_signature.py reads it. */
export async function checkModelSignature(data: Uint8Array, manifest: ReadManifest, keys: readonly PublicKey[], where: string): Promise<void> {
  const { payload, signature, hint } = readBundle(data, where);
  const key = keys.find((each) => each.kind === "p256" && each.hint === hint);
  if (!key) throw unknownSigner(where, `the one whose PEM has the sha256 ${JSON.stringify(hint.slice(0, 64))}`);
  if (!(await verifies(key, signature, preAuthentication(payload, IN_TOTO))))
    throw refused(where, `the signature of the key ${key.id.slice(0, 16)} does not belong to it: it was changed after signing`);
  const signed = await signedDigests(payload, where);
  const listed = new Map(manifest.value.files.map((file) => [file.path, file.sha256]));
  listed.set(NAME, manifest.digest);
  for (const path of listed.keys()) if (IGNORED.includes(path.split("/")[0] ?? "")) listed.delete(path);
  for (const name of [...new Set([...signed.keys(), ...listed.keys()])].sort())
    if (signed.get(name) !== listed.get(name)) throw refused(where, `${JSON.stringify(name)} was changed, added or removed after this was signed`);
}

interface Bundle {
  payload: Uint8Array<ArrayBuffer>;
  signature: Uint8Array<ArrayBuffer>;
  hint: string;
}

/** The one signature in a sigstore bundle, by a public key, and nothing more. */
function readBundle(data: Uint8Array, where: string): Bundle {
  if (data.length > MAXIMUM) throw refused(where, `a signature of more than ${MAXIMUM} bytes`);
  const value = objectOf(data, where, "signature");
  const material = value["verificationMaterial"];
  const envelope = value["dsseEnvelope"];
  const named = member(material, "publicKey");
  const entries = member(material, "tlogEntries");
  const signatures = member(envelope, "signatures");
  const hint = member(named, "hint");
  const first = Array.isArray(signatures) && signatures.length === 1 ? (signatures[0] as unknown) : null;
  const plain =
    hasJust(value, ["mediaType", "verificationMaterial", "dsseEnvelope"]) && value["mediaType"] === MEDIA_TYPE &&
    isObject(material) && hasJust(material, ["publicKey", "tlogEntries"]) &&
    isObject(named) && hasJust(named, ["hint"]) && Array.isArray(entries) && !entries.length &&
    isObject(envelope) && hasJust(envelope, ["payload", "payloadType", "signatures"]) && envelope["payloadType"] === IN_TOTO &&
    isObject(first) && hasJust(first, ["sig", "keyid"]) && first["keyid"] === "";
  if (!plain || typeof hint !== "string") throw refused(where, "it must be a sigstore bundle with one signature by a public key, and nothing more");
  return { payload: decoded(member(envelope, "payload"), where), signature: decoded(member(first, "sig"), where), hint };
}

/** {path: sha256} as a signed statement has it. */
async function signedDigests(payload: Uint8Array, where: string): Promise<Map<string, string>> {
  const value = objectOf(payload, where, "signature");
  const subject = value["subject"];
  const predicate = value["predicate"];
  const method = member(predicate, "serialization");
  const resources = member(predicate, "resources");
  if (value["_type"] !== STATEMENT || value["predicateType"] !== PREDICATE || !Array.isArray(subject) || subject.length !== 1)
    throw refused(where, `its statement must be of ${STATEMENT}, with the predicate ${PREDICATE}`);
  const found = new Map<string, string>();
  const digests: Uint8Array[] = [];
  let plain = member(method, "method") === "files" && member(method, "hash_type") === "sha256" && Array.isArray(resources);
  for (const each of plain ? (resources as unknown[]) : []) {
    const name = member(each, "name");
    const digest = member(each, "digest");
    const bytes = typeof digest === "string" ? fromHex(digest) : null;
    plain &&= typeof name === "string" && member(each, "algorithm") === "sha256" && bytes !== null && !found.has(name);
    if (!plain || !bytes) break;
    found.set(name as string, digest as string);
    digests.push(bytes);
  }
  const root = plain ? await sha256Of(joined(digests)) : "";
  if (!plain || member(member(subject[0], "digest"), "sha256") !== root)
    throw refused(where, "it must name each file once, by sha256, and its subject must follow from them");
  return found;
}

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    whole.set(part, place);
    place += part.length;
  }
  return whole;
}
