/** How a text is split into words, within which the model merges: the pre-tokenizers of tokenizer.json. */
import { toCharacters } from "./bytes";
import { type Fields, fields, flag, list, shown, text, unsupported } from "./json";
import { pattern } from "./normalizers";
import { BLANKS, WORD } from "./unicode";

/** A part of the text. first: nothing stands before it, no added token either. */
export interface Piece {
  text: string;
  first: boolean;
}

export type PreTokenizer = (pieces: Piece[]) => Piece[];

/** From tokenizer.json's "pre_tokenizer", null included. Throws TapeoutError "unsupported". */
export function preTokenizer(value: unknown): PreTokenizer {
  if (value === null || value === undefined) return (pieces) => pieces;
  const settings = fields(value, "pre_tokenizer");
  const kind = KINDS[String(settings.type)];
  if (!kind) throw unsupported(`the pre-tokenizer ${shown(settings.type)}`);
  return kind(settings);
}

const KINDS: Record<string, (settings: Fields) => PreTokenizer> = {
  ByteLevel: (settings) => {
    const prefixed = flag(settings.add_prefix_space, true);
    const words = flag(settings.use_regex, true) ? splitter(WORDS, "Isolated") : (text: string) => [text];
    return each((piece) => {
      const text = prefixed && !piece.text.startsWith(" ") ? ` ${piece.text}` : piece.text;
      return words(text).map(toCharacters);
    });
  },
  Split: (settings) => {
    const parts = splitter(pattern(settings.pattern, "pattern of a Split"), settings.behavior, flag(settings.invert, false));
    return each((piece) => parts(piece.text));
  },
  Digits: (settings) => {
    const parts = splitter(/\p{N}/gu, flag(settings.individual_digits, false) ? "Isolated" : "Contiguous");
    return each((piece) => parts(piece.text));
  },
  Punctuation: (settings) => {
    const parts = splitter(/[!-/:-@[-`{-~\p{P}]/gu, settings.behavior ?? "Isolated");
    return each((piece) => parts(piece.text));
  },
  Whitespace: () => {
    const parts = splitter(new RegExp(`[${WORD}]+|[^${WORD}${BLANKS}]+`, "gu"), "Removed", true);
    return each((piece) => parts(piece.text));
  },
  WhitespaceSplit: () => {
    const parts = splitter(new RegExp(`[${BLANKS}]`, "gu"), "Removed");
    return each((piece) => parts(piece.text));
  },
  Metaspace: metaspace,
  Sequence: (settings) => {
    const all = list(settings.pretokenizers, "pretokenizers").map(preTokenizer);
    return (pieces) => all.reduce((result, one) => one(result), pieces);
  },
};

/** GPT-2's words: byte-level encoding splits by them unless told not to. */
const WORDS = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${BLANKS}\\p{L}\\p{N}]+|[${BLANKS}]+(?![^${BLANKS}])|[${BLANKS}]+`,
  "gu",
);

function metaspace(settings: Fields): PreTokenizer {
  const sign = text(settings.replacement, "replacement of a Metaspace");
  const scheme = prependScheme(settings);
  const words = flag(settings.split, true) ? splitter(pattern({ String: sign }, "replacement"), "MergedWithNext") : null;
  return each((piece) => {
    let text = piece.text.replaceAll(" ", sign);
    if ((scheme === "always" || (scheme === "first" && piece.first)) && !text.startsWith(sign)) text = sign + text;
    return words ? words(text) : [text];
  });
}

/** "always", "first" or "never"; older files say add_prefix_space. */
export function prependScheme(settings: Fields): string {
  const scheme = settings.prepend_scheme ?? (flag(settings.add_prefix_space, true) ? "always" : "never");
  if (scheme !== "always" && scheme !== "first" && scheme !== "never") throw unsupported(`prepend_scheme ${shown(scheme)}`);
  return scheme;
}

function each(split: (piece: Piece) => string[]): PreTokenizer {
  return (pieces) =>
    pieces.flatMap((piece) =>
      split(piece)
        .map((text, index) => ({ text, first: piece.first && index === 0 }))
        .filter(({ text }) => text),
    );
}

/** Splits a text at what is searched. behaviour: what becomes of the matches. inverted: what lies between them is the match. */
function splitter(searched: RegExp, behaviour: unknown, inverted = false): (text: string) => string[] {
  const join = JOINS[String(behaviour)];
  if (!join) throw unsupported(`the behaviour ${shown(behaviour)} of a split`);
  return (text) => {
    const parts: Part[] = [];
    let from = 0;
    for (const found of text.matchAll(searched)) {
      if (!found[0] && found.index === from && parts.length) continue; // Oniguruma's search passes over these
      if (from !== found.index) parts.push({ text: text.slice(from, found.index), match: inverted });
      parts.push({ text: found[0], match: !inverted });
      from = found.index + found[0].length;
    }
    if (from < text.length) parts.push({ text: text.slice(from), match: inverted });
    return join(parts);
  };
}

interface Part {
  text: string;
  match: boolean;
}

const JOINS: Record<string, (parts: Part[]) => string[]> = {
  Isolated: (parts) => parts.map(({ text }) => text),
  Removed: (parts) => parts.map(({ text, match }) => (match ? "" : text)),
  Contiguous: (parts) => joined(parts, (part, previous) => part.match === previous.match),
  MergedWithPrevious: (parts) => joined(parts, (part, previous) => part.match && !previous.match),
  MergedWithNext: (parts) => {
    const result: string[] = [];
    for (let index = parts.length - 1; index >= 0; index -= 1) {
      const part = parts[index]!;
      const next = parts[index + 1];
      if (next && part.match && !next.match) result[result.length - 1] = part.text + result[result.length - 1];
      else result.push(part.text);
    }
    return result.reverse();
  },
};

function joined(parts: Part[], together: (part: Part, previous: Part) => boolean): string[] {
  const result: string[] = [];
  parts.forEach((part, index) => {
    const previous = parts[index - 1];
    if (previous && together(part, previous)) result[result.length - 1] += part.text;
    else result.push(part.text);
  });
  return result;
}
