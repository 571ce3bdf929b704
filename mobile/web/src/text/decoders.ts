/** How tokens become text again: the decoders of tokenizer.json. */
import { toBytes } from "./bytes";
import { type Fields, fields, list, shown, text, unsupported } from "./json";
import { pattern } from "./normalizers";
import { prependScheme } from "./pretokenizers";

/** decode: tokens -> parts of the text, to be joined.
 *
 * For streaming. byteLevel: each token is bytes of UTF-8, nothing else is done. held: whether later tokens may still change what
 * this one, of the last of those so far, becomes. prefixed: the text so far is never changed by later tokens but for those that
 * are held and for an unfinished character at its end. */
export interface Decoder {
  decode(tokens: string[]): string[];
  byteLevel: boolean;
  held(token: string): boolean;
  prefixed: boolean;
}

/** From tokenizer.json's "decoder". Null: tokens with a blank between. Throws TapeoutError "unsupported". */
export function decoder(value: unknown): Decoder {
  if (value === null || value === undefined) return made((tokens) => [tokens.join(" ")]);
  const settings = fields(value, "decoder");
  const kind = KINDS[String(settings.type)];
  if (!kind) throw unsupported(`the decoder ${shown(settings.type)}`);
  return kind(settings);
}

const KINDS: Record<string, (settings: Fields) => Decoder> = {
  ByteLevel: () => made((tokens) => [utf8(tokens.map(toBytes))], { byteLevel: true }),
  ByteFallback: () => made(byteFallback, { held: (token) => BYTE.test(token) }),
  Fuse: () => made((tokens) => [tokens.join("")]),
  Replace: (settings) => {
    const searched = pattern(settings.pattern, "pattern of a Replace");
    const content = text(settings.content, "content of a Replace");
    // Behind a decoder that joins tokens, a longer pattern may end in a token that is still to come.
    const single = [...String((settings.pattern as Fields).String ?? "")].length === 1;
    return made((tokens) => tokens.map((token) => token.replace(searched, () => content)), { prefixed: single });
  },
  Strip: (settings) => {
    const [start, stop] = [Number(settings.start), Number(settings.stop)];
    const content = text(settings.content, "content of a Strip");
    return made((tokens) => tokens.map((token) => stripped(token, content, start, stop)), { prefixed: stop === 0 });
  },
  Metaspace: (settings) => {
    const sign = text(settings.replacement, "replacement of a Metaspace");
    const first = prependScheme(settings) === "never" ? " " : "";
    return made((tokens) => tokens.map((token, index) => token.replaceAll(sign, index ? " " : first)));
  },
  Sequence: (settings) => {
    const all = list(settings.decoders, "decoders").map(decoder);
    return {
      decode: (tokens) => all.reduce((result, one) => one.decode(result), tokens),
      byteLevel: all.length === 1 && all[0]!.byteLevel,
      held: (token) => all.some((one) => one.held(token)),
      prefixed: all.every((one) => one.prefixed),
    };
  },
};

function made(decode: Decoder["decode"], rest: Partial<Decoder> = {}): Decoder {
  return { decode, byteLevel: false, held: () => false, prefixed: true, ...rest };
}

const BYTE = /^<0x[0-9A-Fa-f]{2}>$/;

/** Tokens <0xHH> become the characters whose UTF-8 they are; all of a run become U+FFFD where it is not UTF-8. */
function byteFallback(tokens: string[]): string[] {
  const result: string[] = [];
  let run: number[] = [];
  const flush = () => {
    if (!run.length) return;
    try {
      result.push(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(run)));
    } catch {
      for (const _ of run) result.push("\ufffd");
    }
    run = [];
  };
  for (const token of tokens) {
    if (BYTE.test(token)) run.push(parseInt(token.slice(3, 5), 16));
    else {
      flush();
      result.push(token);
    }
  }
  flush();
  return result;
}

function stripped(token: string, content: string, start: number, stop: number): string {
  const characters = [...token];
  let from = 0;
  while (from < start && characters[from] === content) from += 1;
  let to = characters.length;
  while (characters.length - to < stop && to > from && characters[to - 1] === content) to -= 1;
  return characters.slice(from, to).join("");
}

function utf8(parts: Uint8Array[]): string {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(all);
}
