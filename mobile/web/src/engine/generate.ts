/** Greedy generation, token by token: stages/runtimes/generate.py, with a look at the clock. */
import { TapeoutError } from "../errors";
import type { Cache, Decoder } from "./decoder";
import { pause } from "./pause";

/** Set by whoever wants an answer to stop; an AbortSignal is one. */
export interface Stop {
  readonly aborted: boolean;
}

export interface Request {
  ids: readonly number[]; // the prompt (N), the image token once for each of features' rows
  features: Float32Array | null; // visual tokens (T, D)
  imageTokenId: number | null;
  hidden: number;
  endId: number;
  maxTokens: number;
  signal: Stop;
  onToken(id: number): void;
}

export interface Generated {
  ids: number[];
  stop: "end" | "length" | "context";
  prefill_ms: number;
  first_token_ms: number; // from the call to the choice of the first token
  step_ms: number[]; // of each further token
}

/** The most likely next token again and again, until endId (left out), or maxTokens, or the context is full.
 *
 * Throws "prompt" where the prompt does not fit the context or has another number of image tokens, "aborted", "memory",
 * "runtime". The event loop runs at least every SLICE_MS, so that an abort is heard.
 */
export async function generate(decoder: Decoder, request: Request): Promise<Generated> {
  const began = performance.now();
  const cache = decoder.start();
  try {
    let logits = await prefill(decoder, cache, request);
    const answer: number[] = [];
    const step_ms: number[] = [];
    const prefill_ms = performance.now() - began;
    let first_token_ms = prefill_ms;
    let paused = began;
    let stop: Generated["stop"] = "length";
    while (answer.length < request.maxTokens) {
      const chosen = performance.now();
      const token = argmax(logits);
      if (!answer.length) first_token_ms = performance.now() - began;
      if (token === request.endId) {
        stop = "end";
        break;
      }
      answer.push(token);
      request.onToken(token);
      if (answer.length === request.maxTokens) break;
      if (request.ids.length + answer.length - 1 >= decoder.context) {
        stop = "context";
        break;
      }
      logits = await decoder.step(token, cache);
      const now = performance.now();
      step_ms.push(now - chosen);
      if (now - paused > SLICE_MS) {
        await pause();
        paused = performance.now();
      }
      check(request.signal);
    }
    return { ids: answer, stop, prefill_ms, first_token_ms, step_ms };
  } finally {
    decoder.release(cache);
  }
}

const SLICE_MS = 8;
const CHUNK_MS = 50; // of a prompt, between two looks for an abort

/** The prompt in one run, or, where the last one was slower than an abort may take, in several. */
async function prefill(decoder: Decoder, cache: Cache, request: Request): Promise<Float32Array> {
  const { ids, signal } = request;
  decoder.checkRoom(ids.length);
  const rows = imageRows(request);
  const pace = paces.get(decoder) ?? 0;
  const slices = pace * ids.length < 2 * CHUNK_MS ? ids.length : Math.max(16, Math.ceil(CHUNK_MS / pace));
  const chunk = Math.min(slices, decoder.rows);
  let logits: Float32Array | undefined;
  const began = performance.now();
  for (let start = 0; start < ids.length; start += chunk) {
    await pause();
    check(signal);
    const end = Math.min(start + chunk, ids.length);
    logits = await decoder.prefill(ids.slice(start, end), rows?.subarray(start * request.hidden, end * request.hidden) ?? null, cache);
  }
  paces.set(decoder, (performance.now() - began) / Math.max(1, ids.length));
  return logits!; // of one token at least
}

const paces = new WeakMap<Decoder, number>(); // milliseconds a token of the last prompt

/** features (T, D) spread over the prompt: (N, D), row i of use where ids[i] is the image token. */
function imageRows({ ids, features, imageTokenId, hidden }: Request): Float32Array | null {
  const places: number[] = [];
  ids.forEach((id, place) => id === imageTokenId && places.push(place));
  const count = features ? features.length / hidden : 0;
  if (places.length !== count)
    throw new TapeoutError(
      "prompt",
      `the prompt has ${places.length} image tokens, the image gave ${count} visual tokens`,
      "The bundle's preprocessing and its encoder do not belong together: build it again.",
    );
  if (!features || !count) return null;
  const rows = new Float32Array(ids.length * hidden);
  places.forEach((place, row) => rows.set(features.subarray(row * hidden, (row + 1) * hidden), place * hidden));
  return rows;
}

/** The first of the largest, as numpy's. */
function argmax(values: Float32Array): number {
  let best = 0;
  let largest = values[0]!;
  for (let place = 1; place < values.length; place++) {
    const value = values[place]!;
    if (value > largest) {
      largest = value;
      best = place;
    }
  }
  return best;
}

export function check(signal: Stop): void {
  if (signal.aborted) throw new TapeoutError("aborted", "the answer was stopped");
}
