/** The byte-level alphabet of GPT-2: a printable character for each of the 256 bytes. */

/** byte -> character */
export const CHARACTERS: readonly string[] = alphabet();

/** UTF-8 of a text, a character for each byte. */
export function toCharacters(text: string): string {
  if (PLAIN.test(text)) return text;
  let result = "";
  for (const byte of new TextEncoder().encode(text)) result += CHARACTERS[byte];
  return result;
}

/** The bytes of a token; its own UTF-8 where it holds a character that stands for none, as an added token may. */
export function toBytes(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let index = 0; index < token.length; index += 1) {
    const byte = BYTES.get(token.charCodeAt(index));
    if (byte === undefined) return new TextEncoder().encode(token);
    bytes[index] = byte;
  }
  return bytes;
}

const PLAIN = /^[!-~]*$/;
const BYTES = new Map(CHARACTERS.map((character, byte) => [character.charCodeAt(0), byte]));

function alphabet(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(printable ? byte : next++);
  });
}
