/** Sets of characters as Rust, Oniguruma and Python have them, which are not always JavaScript's.
 *
 * \p{L} and its like are the browser's own: characters that Unicode has had since 2023, as those of CJK extension I, may be
 * letters to the browser and not yet to Oniguruma. */

/** Unicode's White_Space, for the inside of a RegExp class: \s of Rust and Oniguruma. JavaScript's has U+FEFF and lacks U+0085. */
export const BLANKS = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";

/** All but BLANKS, for the inside of a class. */
export const NOT_BLANKS =
  "\\0-\\x08\\x0e-\\x1f!-\\x84\\x86-\\x9f\\xa1-\\u167f\\u1681-\\u1fff\\u200b-\\u2027\\u202a-\\u202e\\u2030-\\u205e\\u2060-\\u2fff\\u3001-\\u{10ffff}";

/** \w of Rust's regex, for the inside of a class. */
export const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";

/** \w of Oniguruma within a class: no joiners. */
export const ONIGURUMA_WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

/** \w of Oniguruma outside a class: Latin-1's fractions and raised digits too. */
export const ONIGURUMA_BARE_WORD = `${ONIGURUMA_WORD}\\xb2\\xb3\\xb9\\xbc-\\xbe`;

/** What Python's str.strip() takes away: White_Space and the four separators U+001C to U+001F. */
const PYTHON_BLANKS = `\\x1c-\\x1f${BLANKS}`;
const LEADING = new RegExp(`^[${PYTHON_BLANKS}]+`, "u");
const BLANK = new RegExp(`^[${PYTHON_BLANKS}]$`, "u");

/** Python's str.strip(). */
export function strip(text: string): string {
  return stripEnd(stripStart(text));
}

/** Python's str.lstrip(). */
export function stripStart(text: string): string {
  return text.replace(LEADING, "");
}

/** Python's str.rstrip(), in one pass: a RegExp that ends in $ is tried at every blank. */
export function stripEnd(text: string): string {
  let end = text.length;
  while (end > 0 && BLANK.test(text[end - 1]!)) end -= 1;
  return text.slice(0, end);
}

/** Half a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD. */
export function wellFormed(text: string): string {
  return LONE.test(text) ? new TextDecoder("utf-8", { ignoreBOM: true }).decode(new TextEncoder().encode(text)) : text;
}

const LONE = /\p{Surrogate}/u;
