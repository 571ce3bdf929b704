import { TapeoutError } from "../errors";
import { AGAIN, hasJust, isObject, objectOf } from "./json";
import { fromBase64, hasOneForm, toBase64, verifies, type PublicKey } from "./keys";

export const IN_TOTO = "application/vnd.in-toto+json";
/** Bytes of a signature's file. */
export const MAXIMUM = 16 << 20;
const SIGNATURES = 64;

/** The payload of a DSSE envelope (https://github.com/secure-systems-lab/dsse) that a trusted key has signed: as
 * stages/release/signing/dsse.py, `open_envelope`. Throws "signature", also where the signature of any trusted key is wrong
 * or not in its one form; "unsupported" where nothing here can check it. */
export async function openEnvelope(data: Uint8Array, keys: readonly PublicKey[], where: string): Promise<Uint8Array<ArrayBuffer>> {
  const { payload, type, signatures } = readEnvelope(data, where);
  if (type !== IN_TOTO) throw refused(where, `its payload is ${JSON.stringify(type).slice(0, 100)}, expected '${IN_TOTO}'`);
  const found = keys.filter((key) => signatures.has(key.id));
  if (!found.length) throw unknownSigner(where, [...signatures.keys()].map((id) => id.slice(0, 16)).join(", "));
  const signed = preAuthentication(payload, type);
  let right = 0;
  let unsupported: unknown = null;
  for (const key of found) {
    const signature = signatures.get(key.id) as Uint8Array<ArrayBuffer>;
    try {
      if (!(await verifies(key, signature, signed)))
        throw refused(where, `the signature of the key ${key.id.slice(0, 16)} does not belong to it: it was changed after signing`);
    } catch (error) {
      if (!(error instanceof TapeoutError && error.code === "unsupported")) throw error;
      unsupported = error; // another key's signature may do
      continue;
    }
    if (!hasOneForm(key, signature)) throw refused(where, `the signature of the key ${key.id.slice(0, 16)} has a high s: somebody has rewritten it`);
    right += 1;
  }
  if (!right) throw unsupported;
  return payload;
}

interface Envelope {
  payload: Uint8Array<ArrayBuffer>;
  type: string;
  signatures: Map<string, Uint8Array<ArrayBuffer>>;
}

/** What an envelope holds, unchecked but in its one form. */
function readEnvelope(data: Uint8Array, where: string): Envelope {
  if (data.length > MAXIMUM) throw refused(where, `an envelope of more than ${MAXIMUM} bytes`);
  const value = objectOf(data, where, "signature");
  const { payload, payloadType: type, signatures: list } = value;
  if (!hasJust(value, ["payload", "payloadType", "signatures"]) || typeof type !== "string")
    throw refused(where, "it must hold payload, payloadType and signatures, and no more");
  if (!Array.isArray(list) || !list.length || list.length > SIGNATURES) throw refused(where, `it must have 1 to ${SIGNATURES} signatures`);
  const signatures = new Map<string, Uint8Array<ArrayBuffer>>();
  for (const each of list) {
    if (!isObject(each) || !hasJust(each, ["keyid", "sig"]) || typeof each["keyid"] !== "string" || !/^[A-Za-z0-9]{1,128}$/.test(each["keyid"]))
      throw refused(where, "a signature must hold keyid and sig, and no more");
    if (signatures.has(each["keyid"])) throw refused(where, "two signatures of one key");
    signatures.set(each["keyid"], decoded(each["sig"], where));
  }
  const envelope = { payload: decoded(payload, where), type, signatures };
  const written = new TextEncoder().encode(
    JSON.stringify({
      payload: toBase64(envelope.payload),
      payloadType: type,
      signatures: [...signatures].map(([keyid, signature]) => ({ keyid, sig: toBase64(signature) })),
    }),
  );
  if (written.length !== data.length || !written.every((byte, place) => byte === data[place]))
    throw refused(where, "the same could be said in fewer bytes, or in another order");
  return envelope;
}

/** The bytes that are signed: DSSE's pre-authentication encoding. */
export function preAuthentication(payload: Uint8Array, type: string): Uint8Array<ArrayBuffer> {
  const kind = new TextEncoder().encode(type);
  const head = new TextEncoder().encode(`DSSEv1 ${kind.length} ${type} ${payload.length} `);
  const whole = new Uint8Array(head.length + payload.length);
  whole.set(head);
  whole.set(payload, head.length);
  return whole;
}

export function decoded(text: unknown, where: string): Uint8Array<ArrayBuffer> {
  const bytes = typeof text === "string" ? fromBase64(text) : null;
  if (!bytes) throw refused(where, "not base64 as it should be");
  return bytes;
}

export function unknownSigner(where: string, who: string): TapeoutError {
  return new TapeoutError("signature", `${where}: signed by no key that is trusted, but by ${who}`, "pass the signer's .pub among the keys, if you trust it");
}

export function refused(where: string, why: string): TapeoutError {
  return new TapeoutError("signature", `${where}: ${why}`, AGAIN);
}
