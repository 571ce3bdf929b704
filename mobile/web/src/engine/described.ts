/** What a bundle has to say of itself to be run; the manifest's schema leaves it to the runtime. */
import { TapeoutError } from "../errors";
import type { Manifest, Preprocessing } from "../manifest";

/** How the images and questions of a bundle are prepared. Throws TapeoutError "unsupported" where it says nothing of them,
 * "manifest" where it lacks what is needed. */
export function describedBy({ model, preprocessing, tokenizer }: Manifest): { settings: Preprocessing; tokenizer: string } {
  if (!preprocessing || !tokenizer)
    throw new TapeoutError("unsupported", "the bundle holds no tokenizer or no preprocessing: it cannot be asked", "Build it from a language model.");
  const needed: [string, unknown, (value: unknown) => boolean][] = [
    ...(["context", "hidden", "layers", "kv_heads", "head_dim"] as const).map((name) => [`model.${name}`, model[name], isSize] as [string, unknown, typeof isSize]),
    ["model.functions", model.functions, isObject],
    ["preprocessing.prompt_template", preprocessing.prompt_template, isText],
    ["preprocessing.end_token", preprocessing.end_token, isText],
    ["preprocessing.max_new_tokens", preprocessing.max_new_tokens, isSize],
  ];
  if (model.files["encoder"] !== undefined)
    needed.push(
      ["model.image_tokens", model.image_tokens, isSize],
      ["model.image_token_id", model.image_token_id, (value) => value === 0 || isSize(value)],
      ["preprocessing.image_size", preprocessing.image_size, isSize],
      ["preprocessing.mean", preprocessing.mean, isColour],
      ["preprocessing.std", preprocessing.std, (value) => isColour(value) && !(value as number[]).includes(0)],
    );
  for (const [name, value, isRight] of needed)
    if (!isRight(value)) throw new TapeoutError("manifest", `manifest.json: ${name} is ${JSON.stringify(value)?.slice(0, 100) ?? "missing"}`, "Build the bundle again.");
  return { settings: preprocessing, tokenizer };
}

const isSize = (value: unknown): boolean => Number.isInteger(value) && (value as number) > 0;
const isObject = (value: unknown): boolean => typeof value === "object" && value !== null;
const isText = (value: unknown): boolean => typeof value === "string";
const isColour = (value: unknown): boolean => Array.isArray(value) && value.length === 3 && value.every(Number.isFinite);
