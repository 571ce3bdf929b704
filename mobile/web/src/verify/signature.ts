import { TapeoutError } from "../errors";
import { openEnvelope } from "./dsse";
import { AGAIN } from "./json";
import { readKeys, type PublicKey } from "./keys";
import type { ReadManifest } from "./manifest";
import { checkModelSignature } from "./model_signature";
import { checkProvenance } from "./provenance";

/** Whom the caller trusts: signers, or one manifest by its sha256, or both. */
export interface Trust {
  keys: PublicKey[] | null;
  digest: string | null;
}

/** What lies beside a bundle's folder; null: nothing. */
export interface Sidecars {
  provenance: Uint8Array<ArrayBuffer> | null;
  signature: Uint8Array<ArrayBuffer> | null;
}

/** Where each lies: the bundle's name and this. */
export const SUFFIXES = { provenance: ".provenance.json", signature: ".model.sig" } as const;

/** keys: PEM; digest: hex. Throws "signature" where both are missing, or one is malformed. */
export async function readTrust(keys: readonly string[] | undefined, digest: string | undefined): Promise<Trust> {
  if (!keys?.length && digest === undefined)
    throw new TapeoutError("signature", "nobody is trusted: neither keys nor digest was given", "pass keys: [the text of the signer's .pub], or digest: the bundle's");
  if (digest !== undefined && !/^[0-9a-f]{64}$/.test(digest))
    throw new TapeoutError("signature", "digest is no sha256 in lower-case hex", "'tapeout verify BUNDLE' prints the bundle's");
  return { keys: keys?.length ? await readKeys(keys) : null, digest: digest ?? null };
}

/** Throws "signature" unless the manifest is one that is trusted. Whatever lies beside the bundle must be right and signed
 * by a trusted key, as `tapeout verify` demands. */
export async function checkOrigin(manifest: ReadManifest, beside: Sidecars, trust: Trust, where: string): Promise<void> {
  if (trust.digest !== null && trust.digest !== manifest.digest)
    throw new TapeoutError("signature", `${where}: its digest is ${manifest.digest}, expected ${trust.digest}`, `${AGAIN}, or pass the digest of this version`);
  if (trust.keys === null) return;
  if (!beside.provenance && !beside.signature)
    throw new TapeoutError("signature", `${where}: nobody signed it`, `'tapeout sign' writes ${SUFFIXES.provenance} and ${SUFFIXES.signature}; serve them beside the folder`);
  if (beside.provenance) {
    const name = where + SUFFIXES.provenance;
    checkProvenance(await openEnvelope(beside.provenance, trust.keys, name), manifest, name);
  }
  if (beside.signature) await checkModelSignature(beside.signature, manifest, trust.keys, where + SUFFIXES.signature);
}
