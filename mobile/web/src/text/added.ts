/** Tokens that are found in the text itself, before the model sees it: tokenizer.json's "added_tokens". */
import { fields, flag, list, text } from "./json";
import type { Normalizer } from "./normalizers";
import { BLANKS, WORD } from "./unicode";

export interface AddedToken {
  id: number;
  content: string;
  /** as the decoder gets it: normalized, if that is how it is searched */
  decoded: string;
  special: boolean;
  /** blanks before or behind it are its own */
  lstrip: boolean;
  rstrip: boolean;
  /** not where a letter or digit is beside it */
  singleWord: boolean;
  /** searched in the normalized text */
  normalized: boolean;
}

/** A part of a text: an added token, or what lies between two. */
export type Found = { id: number } | { text: string; start: number };

/** From tokenizer.json, in its order; one that is empty or was there before is left out.
 *
 * A token that the model has keeps the model's number; the others are numbered on from there, whatever the file says: so the
 * library does it. */
export function addedTokens(value: unknown, model: { size: number; idOf(token: string): number | undefined }, normalize: Normalizer): AddedToken[] {
  const result = new Map<string, AddedToken>();
  let highest = -1;
  for (const item of list(value ?? [], "added_tokens")) {
    const token = fields(item, "an added token");
    const content = text(token.content, "content of an added token");
    if (!content || result.has(content)) continue;
    const id = model.idOf(content) ?? Math.max(highest + 1, model.size);
    highest = Math.max(highest, id);
    const special = flag(token.special, false);
    const normalized = flag(token.normalized, !special);
    result.set(content, {
      id,
      content,
      decoded: normalized ? normalize(content) : content,
      special,
      lstrip: flag(token.lstrip, false),
      rstrip: flag(token.rstrip, false),
      singleWord: flag(token.single_word, false),
      normalized,
    });
  }
  return [...result.values()];
}

/** Finds tokens: the leftmost, and of those the longest. */
export class Finder {
  private readonly root: Node = new Map();

  constructor(tokens: AddedToken[]) {
    for (const token of tokens) {
      let node = this.root;
      const searched = token.decoded;
      for (let at = 0; at < searched.length; at += 1) {
        const code = searched.charCodeAt(at);
        let next = node.get(code) as Node | undefined;
        if (!next) node.set(code, (next = new Map()));
        node = next;
      }
      if (searched && !node.has(END)) node.set(END, token);
    }
  }

  split(text: string): Found[] {
    const result: Found[] = [];
    let from = 0;
    let at = 0;
    while (at < text.length) {
      const match = this.at(text, at);
      if (!match) {
        at += 1;
        continue;
      }
      const { token } = match;
      let start = at;
      let stop = match.stop;
      at = stop;
      if (token.singleWord && (ENDS_WITH_WORD.test(lastCharacter(text, start)) || STARTS_WITH_WORD.test(text.slice(stop, stop + 2)))) continue;
      if (token.lstrip) while (start > from && BLANK.test(text[start - 1]!)) start -= 1;
      if (token.rstrip) while (stop < text.length && BLANK.test(text[stop]!)) stop += 1;
      if (from < start) result.push({ text: text.slice(from, start), start: from });
      result.push({ id: token.id });
      from = stop;
    }
    if (from < text.length) result.push({ text: text.slice(from), start: from });
    return result;
  }

  private at(text: string, start: number): { token: AddedToken; stop: number } | null {
    let found: { token: AddedToken; stop: number } | null = null;
    let node: Node | undefined = this.root;
    for (let at = start; at < text.length; at += 1) {
      node = node.get(text.charCodeAt(at)) as Node | undefined;
      if (!node) break;
      const token = node.get(END) as AddedToken | undefined;
      if (token) found = { token, stop: at + 1 };
    }
    return found;
  }
}

/** UTF-16 code -> node; END -> the token that ends here */
type Node = Map<number, Map<number, unknown> | AddedToken>;
const END = -1;
const BLANK = new RegExp(`^[${BLANKS}]$`, "u");
const STARTS_WITH_WORD = new RegExp(`^[${WORD}]`, "u");
const ENDS_WITH_WORD = new RegExp(`^[${WORD}]$`, "u");

function lastCharacter(text: string, end: number): string {
  const pair = end > 1 && /[\udc00-\udfff]/.test(text[end - 1]!);
  return text.slice(pair ? end - 2 : Math.max(end - 1, 0), end);
}
