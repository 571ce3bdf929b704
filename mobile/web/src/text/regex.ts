/** From Oniguruma's regular expressions, which tokenizer.json holds, to JavaScript's.
 *
 * Oniguruma's Ruby syntax as its doc/RE has it: letters of \s, \w and \d are Unicode's, ^ and $ are a line's, (?i:...) holds for
 * a group, ?+ *+ ++ and (?>...) never go back. What is not translated is TapeoutError "unsupported" that names it. */
import { unsupported } from "./json";
import { BLANKS, NOT_BLANKS, ONIGURUMA_BARE_WORD, ONIGURUMA_WORD } from "./unicode";

/** A global RegExp that finds what Oniguruma would. */
export function translated(pattern: string): RegExp {
  const source = new Translation(pattern).all();
  try {
    return new RegExp(source, "gu");
  } catch {
    throw unsupported(`the regular expression ${JSON.stringify(pattern)}`);
  }
}

/** A RegExp, global, of the text itself. */
export function literal(text: string): RegExp {
  return new RegExp([...text].map(escaped).join(""), "gu");
}

const CONTROL: Record<string, string> = { t: "\\t", n: "\\n", r: "\\r", f: "\\f", v: "\\v", a: "\\x07", e: "\\x1b" };
const CLASSES: Record<string, string> = { s: BLANKS, S: NOT_BLANKS, d: "\\p{Nd}", D: "\\P{Nd}", w: ONIGURUMA_WORD, h: "0-9A-Fa-f" };
/** Outside a class. */
const BARE: Record<string, string> = { w: `[${ONIGURUMA_BARE_WORD}]`, W: `[^${ONIGURUMA_BARE_WORD}]`, H: "[^0-9A-Fa-f]" };
const ANCHORS: Record<string, string> = {
  A: "(?<![^])",
  z: "(?![^])",
  Z: "(?=\\n?(?![^]))",
  b: `(?:(?<=[${ONIGURUMA_BARE_WORD}])(?![${ONIGURUMA_BARE_WORD}])|(?<![${ONIGURUMA_BARE_WORD}])(?=[${ONIGURUMA_BARE_WORD}]))`,
  B: `(?:(?<=[${ONIGURUMA_BARE_WORD}])(?=[${ONIGURUMA_BARE_WORD}])|(?<![${ONIGURUMA_BARE_WORD}])(?![${ONIGURUMA_BARE_WORD}]))`,
};
const CASED = /^(Lu|Ll|Lt|Uppercase|Lowercase|Upper|Lower|Uppercase_Letter|Lowercase_Letter|Titlecase_Letter)$/i;

class Translation {
  private readonly characters: string[];
  private at = 0;
  private atomic = 0;

  constructor(private readonly pattern: string) {
    this.characters = [...pattern];
  }

  all(): string {
    const result = this.alternatives(false, false);
    if (this.at < this.characters.length) throw this.refused(")");
    return result;
  }

  /** Up to the group's end. anyCase: letters match in either case. dotAll: . matches \n. */
  private alternatives(anyCase: boolean, dotAll: boolean): string {
    let result = "";
    while (this.at < this.characters.length && this.characters[this.at] !== ")") {
      if (this.takes("|")) result += "|";
      else if (this.takes("(?i)")) anyCase = true;
      else if (this.takes("(?m)")) dotAll = true;
      else if (this.takes("^")) result += "(?:(?<![^])|(?<=\\n)(?=[^]))";
      else if (this.takes("$")) result += "(?=\\n|(?![^]))";
      else result += this.quantified(this.atom(anyCase, dotAll));
    }
    return result;
  }

  private atom(anyCase: boolean, dotAll: boolean): string {
    const character = this.characters[this.at++]!;
    if (character === "(") return this.group(anyCase, dotAll);
    if (character === "[") return this.set(anyCase);
    if (character === ".") return dotAll ? "[^]" : "[^\\n]";
    if (character === "\\") {
      const name = this.characters[this.at];
      const whole = name === undefined ? undefined : (ANCHORS[name] ?? BARE[name]);
      if (whole) {
        this.at += 1;
        return whole;
      }
      const { inside, single } = this.escape(anyCase);
      return single !== undefined && anyCase ? oneOf(single) : single !== undefined ? inside : `[${inside}]`;
    }
    if ("*+?".includes(character)) throw this.refused(character);
    return anyCase ? oneOf(character) : escaped(character);
  }

  private group(anyCase: boolean, dotAll: boolean): string {
    let opened = "(?:";
    let closed = ")";
    const flags = this.matches(/^\?([im]*)(?:-([im]+))?:/);
    if (flags) {
      for (const [letters, value] of [[flags[1], true], [flags[2], false]] as const) {
        if (letters?.includes("i")) anyCase = value;
        if (letters?.includes("m")) dotAll = value;
      }
    } else if (this.takes("?>")) {
      [opened, closed] = this.never();
    } else {
      const look = this.matches(/^\?(?:<?[=!])/);
      if (look) opened = `(${look[0]}`;
      else if (this.matches(/^\?<[A-Za-z_]\w*>/)) opened = "(?:";
      else if (this.characters[this.at] === "?") throw this.refused(`(?${this.characters[this.at + 1] ?? ""}`);
    }
    const inside = this.alternatives(anyCase, dotAll);
    if (!this.takes(")")) throw this.refused("a group without an end");
    return opened + inside + closed;
  }

  private quantified(atom: string): string {
    for (;;) {
      const found = this.matches(/^(?:[*+?]|\{\d+(?:,\d*)?\}|\{,\d+\})/);
      if (!found) return atom;
      const quantifier = found[0].startsWith("{,") ? `{0${found[0].slice(1)}` : found[0];
      if (this.takes("?")) atom = `(?:${atom}${quantifier}?)`;
      else if (!quantifier.startsWith("{") && this.takes("+")) {
        const [opened, closed] = this.never();
        atom = `${opened}${atom}${quantifier}${closed}`;
      } else atom = `(?:${atom}${quantifier})`;
    }
  }

  /** A group that is not gone back into: what a look-ahead found is taken as it is. */
  private never(): [string, string] {
    const name = `atomic${(this.atomic += 1)}`;
    return [`(?:(?=(?<${name}>`, `))\\k<${name}>)`];
  }

  /** What stands between [ and ]. */
  private set(anyCase: boolean): string {
    let result = this.takes("^") ? "[^" : "[";
    let first = true;
    while (first || this.characters[this.at] !== "]") {
      if (this.at >= this.characters.length) throw this.refused("a class without an end");
      if (this.characters[this.at] === "[" || this.matches(/^&&/)) throw this.refused("a class within a class");
      const low = this.member(anyCase);
      if (low.single !== undefined && this.characters[this.at] === "-" && this.characters[this.at + 1] !== "]") {
        this.at += 1;
        const high = this.member(anyCase);
        if (high.single === undefined) throw this.refused("a range up to a class");
        result += `${escaped(low.single)}-${escaped(high.single)}`;
        if (anyCase) result += casesBetween(low.single, high.single);
      } else result += low.single !== undefined && anyCase ? cases(low.single).map(escaped).join("") : low.inside;
      first = false;
    }
    this.at += 1;
    return `${result}]`;
  }

  private member(anyCase: boolean): { inside: string; single?: string } {
    const character = this.characters[this.at++]!;
    if (character !== "\\") return { inside: escaped(character), single: character };
    if (this.characters[this.at] === "b") {
      this.at += 1;
      return { inside: "\\x08", single: "\b" };
    }
    return this.escape(anyCase);
  }

  /** What follows a backslash. inside: what it is within a class; single: the character, if it is one. */
  private escape(anyCase: boolean): { inside: string; single?: string } {
    const property = this.matches(/^([pP])\{(\^?)(\w+)\}/);
    if (property) {
      const [, letter, negated, name] = property as unknown as [string, string, string, string];
      if (anyCase && CASED.test(name)) throw this.refused(`\\p{${name}} in either case`);
      return { inside: `\\${(letter === "P") !== (negated === "^") ? "P" : "p"}{${this.property(name)}}` };
    }
    const code = this.matches(/^(?:x\{([0-9A-Fa-f]{1,8})\}|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4}))/);
    if (code) {
      const single = String.fromCodePoint(parseInt(code[1] ?? code[2] ?? code[3] ?? "", 16));
      return { inside: escaped(single), single };
    }
    const character = this.characters[this.at++];
    if (character === undefined) throw this.refused("a backslash at the end");
    if (character in CONTROL) return { inside: CONTROL[character]!, single: JSON.parse(`"${UNICODE[character]}"`) as string };
    if (character in CLASSES) return { inside: CLASSES[character]! };
    if (/[A-Za-z0-9]/.test(character)) throw this.refused(`\\${character}`);
    return { inside: escaped(character), single: character };
  }

  private property(name: string): string {
    for (const form of [name, `Script=${name}`])
      try {
        new RegExp(`\\p{${form}}`, "u");
        return form;
      } catch {
        continue;
      }
    throw this.refused(`\\p{${name}}`);
  }

  private takes(text: string): boolean {
    const found = this.characters.slice(this.at, this.at + text.length).join("") === text;
    if (found) this.at += text.length;
    return found;
  }

  private matches(expression: RegExp): RegExpExecArray | null {
    const found = expression.exec(this.characters.slice(this.at, this.at + 64).join(""));
    if (found) this.at += found[0].length;
    return found;
  }

  private refused(what: string): Error {
    return unsupported(`${what} in the regular expression ${JSON.stringify(this.pattern)}`);
  }
}

const UNICODE: Record<string, string> = { t: "\\t", n: "\\n", r: "\\r", f: "\\f", v: "\\u000b", a: "\\u0007", e: "\\u001b" };

function escaped(character: string): string {
  return /[\^$\\.*+?()[\]{}|/-]/.test(character) ? `\\u{${character.codePointAt(0)!.toString(16)}}` : character;
}

function oneOf(character: string): string {
  const all = cases(character);
  return all.length > 1 ? `[${all.map(escaped).join("")}]` : escaped(character);
}

/** The characters that are the same but for their case, by Unicode's simple folding, as the flag i has it. */
function cases(character: string): string[] {
  const same = new RegExp(`^${escaped(character)}$`, "iu");
  const near = [character, character.toLowerCase(), character.toUpperCase(), character.toUpperCase().toLowerCase(), ...OTHERS];
  return [...new Set(near)].filter((other) => same.test(other));
}

/** Letters that fold to another without being its upper or lower case. */
const OTHERS = ["\u017f", "\u212a", "\u212b", "\u2126", "\u00b5", "\u03c2", "\u03d0", "\u03d1", "\u03d5", "\u03d6", "\u03f0", "\u03f1", "\u03f5", "\u1e9b", "\u1fbe", "\u0345", "\u1e9e", "\u00df"];

function casesBetween(low: string, high: string): string {
  let result = "";
  const last = high.codePointAt(0)!;
  for (let code = low.codePointAt(0)!; code <= last && code < 0x3000; code += 1)
    for (const other of cases(String.fromCodePoint(code))) result += escaped(other);
  return result;
}
