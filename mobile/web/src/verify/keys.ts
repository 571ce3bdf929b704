import { TapeoutError } from "../errors";
import { sha256Of, toHex } from "./sha256";

/** A key that is trusted. id: as securesystemslib computes it; hint: the sha256 of its PEM, by which OpenSSF's model
 * signature names it; both in hex. */
export interface PublicKey {
  kind: "p256" | "ed25519";
  id: string;
  hint: string;
  der: Uint8Array<ArrayBuffer>;
}

/** Bytes of SubjectPublicKeyInfo before the key itself: RFC 5480 (an uncompressed point of P-256), RFC 8410. */
const P256 = "3059301306072a8648ce3d020106082a8648ce3d03010703420004";
const ED25519 = "302a300506032b6570032100";
const ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n; // of P-256's group: FIPS 186-4, D.1.2.3
const MAKE_ONE = "give the text of a .pub file that 'tapeout key new FILE' has made";

/** The public keys in PEM (SubjectPublicKeyInfo: P-256 or Ed25519), each once. Throws "signature" for what is none. */
export async function readKeys(pems: readonly string[]): Promise<PublicKey[]> {
  const keys = await Promise.all(pems.map(readKey));
  return [...new Map(keys.map((key) => [key.id, key])).values()];
}

async function readKey(pem: string): Promise<PublicKey> {
  if (typeof pem === "string" && pem.includes("PRIVATE KEY"))
    throw new TapeoutError("signature", "a trusted key is a private key", "give the public one, and the private one to nobody");
  const body = typeof pem === "string" ? /^\s*-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]*)-----END PUBLIC KEY-----\s*$/.exec(pem) : null;
  const der = body && fromBase64((body[1] ?? "").replace(/\s/g, ""));
  if (!der) throw new TapeoutError("signature", "a trusted key is no public key in PEM", MAKE_ONE);
  const hex = toHex(der);
  const text = `-----BEGIN PUBLIC KEY-----\n${(toBase64(der).match(/.{1,64}/g) ?? []).join("\n")}\n-----END PUBLIC KEY-----\n`;
  const hint = await sha256Of(new TextEncoder().encode(text));
  if (der.length === 91 && hex.startsWith(P256)) return { kind: "p256", id: await idOf("ecdsa", text, "ecdsa-sha2-nistp256"), hint, der };
  if (der.length === 44 && hex.startsWith(ED25519)) return { kind: "ed25519", id: await idOf("ed25519", hex.slice(ED25519.length), "ed25519"), hint, der };
  throw new TapeoutError("signature", "a trusted key is neither of P-256 nor Ed25519", MAKE_ONE);
}

/** securesystemslib's id: the sha256 of the key in OLPC's canonical JSON, in which a line's end stands as it is. */
function idOf(type: string, value: string, scheme: string): Promise<string> {
  return sha256Of(new TextEncoder().encode(`{"keytype":"${type}","keyval":{"public":"${value}"},"scheme":"${scheme}"}`));
}

/** Whether the signature over the data is this key's. P-256: in DER, with SHA-256. Throws "unsupported" for Ed25519 where
 * the browser has none. */
export async function verifies(key: PublicKey, signature: Uint8Array<ArrayBuffer>, data: Uint8Array<ArrayBuffer>): Promise<boolean> {
  const raw = key.kind === "p256" ? rawOf(signature)?.bytes : signature;
  if (!raw) return false;
  const algorithm = key.kind === "p256" ? { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } : { name: "Ed25519" };
  try {
    const imported = await crypto.subtle.importKey("spki", key.der, algorithm, false, ["verify"]);
    return await crypto.subtle.verify(algorithm, imported, raw, data);
  } catch (cause) {
    if (key.kind === "p256" || !isUnsupported(cause)) return false; // a point that is not on the curve
    throw new TapeoutError(
      "unsupported",
      "this browser cannot check an Ed25519 signature",
      "sign with a P-256 key ('tapeout key new FILE', then 'tapeout sign') and trust that one, or use a newer browser",
      { cause },
    );
  }
}

/** Whether a signature that verifies is the one of the two that are equally right: P-256 takes (r, s) and (r, n - s). */
export function hasOneForm(key: PublicKey, signature: Uint8Array): boolean {
  if (key.kind !== "p256") return true;
  const parsed = rawOf(signature);
  return parsed !== null && parsed.s <= ORDER / 2n;
}

/** A P-256 signature in DER (RFC 3279) as WebCrypto takes it: r and s, 32 bytes each. null for what is none. */
function rawOf(der: Uint8Array): { bytes: Uint8Array<ArrayBuffer>; s: bigint } | null {
  if (der.length < 8 || der.length > 72 || der[0] !== 0x30 || der[1] !== der.length - 2) return null;
  const r = integerAt(der, 2);
  const s = r && integerAt(der, r.end);
  if (!r || !s || s.end !== der.length) return null;
  const bytes = new Uint8Array(64);
  bytes.set(r.digits, 32 - r.digits.length);
  bytes.set(s.digits, 64 - s.digits.length);
  return { bytes, s: BigInt(`0x${toHex(bytes.subarray(32))}`) };
}

/** A positive INTEGER of at most 32 bytes, in its one form. */
function integerAt(der: Uint8Array, place: number): { digits: Uint8Array; end: number } | null {
  const length = der[place + 1] ?? 0;
  const end = place + 2 + length;
  const first = der[place + 2] ?? 0;
  if (der[place] !== 0x02 || length < 1 || end > der.length || first & 0x80) return null;
  if (first === 0 && length > 1 && !((der[place + 3] ?? 0) & 0x80)) return null;
  const digits = der.subarray(place + 2 + (first === 0 ? 1 : 0), end);
  return digits.length <= 32 ? { digits, end } : null;
}

function isUnsupported(cause: unknown): boolean {
  return cause instanceof Error && ["NotSupportedError", "SyntaxError", "TypeError"].includes(cause.name);
}

/** What standard base64 stands for; null for what is none, or could be said in another way. */
export function fromBase64(text: string): Uint8Array<ArrayBuffer> | null {
  if (text.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return null;
  const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  return toBase64(bytes) === text ? bytes : null;
}

export function toBase64(bytes: Uint8Array): string {
  let text = "";
  for (let place = 0; place < bytes.length; place += 0x8000) text += String.fromCharCode(...bytes.subarray(place, place + 0x8000));
  return btoa(text);
}
