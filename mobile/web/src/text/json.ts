/** Reading tokenizer.json, whose shape nobody has checked yet. */
import { TapeoutError } from "../errors";

export type Fields = Record<string, unknown>;

/** TapeoutError "unsupported" that names the place in tokenizer.json. */
export function unsupported(what: string, hint = "Build the bundle with a tokenizer of the kinds that mobile/spec names."): TapeoutError {
  return new TapeoutError("unsupported", `tokenizer.json: ${what} is not supported`, hint);
}

export function fields(value: unknown, place: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw unsupported(`${place}, ${shown(value)},`);
  return value as Fields;
}

export function list(value: unknown, place: string): unknown[] {
  if (!Array.isArray(value)) throw unsupported(`${place}, ${shown(value)},`);
  return value;
}

export function text(value: unknown, place: string): string {
  if (typeof value !== "string") throw unsupported(`${place}, ${shown(value)},`);
  return value;
}

export function flag(value: unknown, otherwise: boolean): boolean {
  return typeof value === "boolean" ? value : otherwise;
}

export function shown(value: unknown): string {
  return (JSON.stringify(value) ?? String(value)).slice(0, 80);
}
