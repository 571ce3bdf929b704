/** What is done to a text before it is split: the normalizers of tokenizer.json. */
import { type Fields, fields, flag, list, shown, text, unsupported } from "./json";
import { literal, translated } from "./regex";
import { BLANKS } from "./unicode";

export type Normalizer = (text: string) => string;

/** From tokenizer.json's "normalizer", null included. Throws TapeoutError "unsupported". */
export function normalizer(value: unknown): Normalizer {
  if (value === null || value === undefined) return (text) => text;
  const settings = fields(value, "normalizer");
  const kind = KINDS[String(settings.type)];
  if (!kind) throw unsupported(`the normalizer ${shown(settings.type)}`);
  return kind(settings);
}

/** {"String": ...} or {"Regex": ...} as a global RegExp. */
export function pattern(value: unknown, place: string): RegExp {
  const { String: plain, Regex: regex } = fields(value, place);
  if (typeof regex === "string") return translated(regex);
  if (typeof plain === "string" && plain) return literal(plain);
  throw unsupported(`${place}, ${shown(value)},`);
}

const KINDS: Record<string, (settings: Fields) => Normalizer> = {
  NFC: () => (text) => text.normalize("NFC"),
  NFD: () => (text) => text.normalize("NFD"),
  NFKC: () => (text) => text.normalize("NFKC"),
  NFKD: () => (text) => text.normalize("NFKD"),
  // A character at a time: JavaScript writes a sigma at a word's end in another way, Rust's per-character rule does not.
  Lowercase: () => (text) => Array.from(text, (character) => character.toLowerCase()).join(""),
  Prepend: (settings) => {
    const prefix = text(settings.prepend, "prepend");
    return (text) => (text ? prefix + text : text);
  },
  Replace: (settings) => {
    const searched = pattern(settings.pattern, "pattern of a Replace");
    const content = text(settings.content, "content of a Replace");
    return (text) => text.replace(searched, () => content);
  },
  Strip: (settings) => {
    const sides = [flag(settings.strip_left, true) ? LEFT : null, flag(settings.strip_right, true) ? RIGHT : null];
    return (text) => sides.reduce((rest, side) => (side ? rest.replace(side, "") : rest), text);
  },
  Sequence: (settings) => {
    const all = list(settings.normalizers, "normalizers").map(normalizer);
    return (text) => all.reduce((result, one) => one(result), text);
  },
};

const LEFT = new RegExp(`^[${BLANKS}]+`, "u");
const RIGHT = new RegExp(`(?<![${BLANKS}])[${BLANKS}]+$`, "u");
