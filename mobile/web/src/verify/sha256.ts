import { sha256 } from "@noble/hashes/sha2.js";

/** The sha256 of bytes that are all there, in lower-case hex: by WebCrypto, away from this thread. */
export async function sha256Of(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return toHex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
}

/** The sha256 of bytes that come piece by piece; WebCrypto has none such. */
export class Hasher {
  readonly #hash = sha256.create();
  #milliseconds = 0;

  update(piece: Uint8Array): void {
    const begun = performance.now();
    this.#hash.update(piece);
    this.#milliseconds += performance.now() - begun;
  }

  /** In lower-case hex; nothing can be added after. */
  digest(): string {
    return toHex(this.#hash.digest());
  }

  /** How long hashing took. */
  get milliseconds(): number {
    return this.#milliseconds;
  }
}

export function toHex(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += byte.toString(16).padStart(2, "0");
  return text;
}

/** Bytes of lower-case hex; null for what is none. */
export function fromHex(text: string): Uint8Array<ArrayBuffer> | null {
  if (!/^(?:[0-9a-f]{2})*$/.test(text)) return null;
  return Uint8Array.from({ length: text.length / 2 }, (_, place) => parseInt(text.slice(2 * place, 2 * place + 2), 16));
}
