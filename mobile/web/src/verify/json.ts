import { TapeoutError, type ErrorCode } from "../errors";

/** A JSON object, of which nothing is known. */
export type Json = Record<string, unknown>;

export const AGAIN = "get the bundle again from where it came";

/** The JSON object in the bytes: UTF-8, every name once in its object, no half of a character. `where` names the bytes in
 * messages; `code` is thrown for what is none. */
export function objectOf(bytes: Uint8Array, where: string, code: ErrorCode): Json {
  let value: unknown;
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    value = JSON.parse(text);
    checkNames(text);
    if (!wellFormed(JSON.stringify(value))) throw new SyntaxError("half of a character");
  } catch (cause) {
    const why = cause instanceof SyntaxError ? cause.message : "not UTF-8";
    throw new TapeoutError(code, `${where}: not JSON as it should be: ${why.slice(0, 200)}`, AGAIN, { cause });
  }
  if (!isObject(value)) throw new TapeoutError(code, `${where}: expected a JSON object`, AGAIN);
  return value;
}

export function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Whether an object has just these members. */
export function hasJust(value: Json, names: readonly string[]): boolean {
  return Object.keys(value).length === names.length && names.every((name) => Object.hasOwn(value, name));
}

/** A member that may not be there; never one of Object's own. */
export function member(value: unknown, name: string): unknown {
  return isObject(value) && Object.hasOwn(value, name) ? value[name] : undefined;
}

export function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((each) => typeof each === "string");
}

/** Throws SyntaxError for a name that stands twice in one object: JSON.parse takes the last, others the first.
 * `text` is known to be JSON. */
function checkNames(text: string): void {
  const open: (Set<string> | null)[] = []; // the names of each object around, null: an array
  const token = /"(?:[^"\\]|\\.)*"|[{}[\]]/g;
  const after = /[ \t\r\n]*:/y;
  for (let found = token.exec(text); found; found = token.exec(text)) {
    const word = found[0];
    if (word === "{") open.push(new Set());
    else if (word === "[") open.push(null);
    else if (word === "}" || word === "]") open.pop();
    else {
      after.lastIndex = token.lastIndex;
      if (!after.test(text)) continue; // a value
      const name = JSON.parse(word) as string;
      const names = open[open.length - 1];
      if (names?.has(name)) throw new SyntaxError(`${JSON.stringify(name).slice(0, 100)} stands twice in one object`);
      names?.add(name);
    }
  }
}

/** JSON.stringify writes half of a character as an escape, and nothing else that begins so. */
function wellFormed(text: string): boolean {
  return !/(?<!\\)(?:\\\\)*\\ud[89a-f][0-9a-f]{2}/.test(text);
}
