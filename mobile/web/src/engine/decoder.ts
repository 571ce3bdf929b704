/** The decoder: tokens in, logits of the last one out, with a cache that grows by what was given. */
import type { InferenceSession } from "onnxruntime-web";
import { TapeoutError } from "../errors";
import type { ModelDescription } from "../manifest";
import { ResidentSteps } from "./resident";
import type { Runtime } from "./runtime";
import { runtimeError } from "./session";
import { TensorSteps, type Steps } from "./steps";

/** What is known of the tokens so far. held: as the steps keep it. */
export interface Cache {
  held: unknown;
  length: number;
}

export class Decoder {
  readonly context: number;
  /** Tokens that a prefill may take at once. */
  readonly rows: number;
  private readonly steps: Steps<unknown>;
  private readonly one: BigInt64Array = new BigInt64Array(1);

  constructor(
    runtime: Runtime,
    private readonly session: InferenceSession,
    model: ModelDescription,
  ) {
    this.context = model.context;
    this.rows = model.prefill_chunk ?? (runtime.backend === "webgpu" ? WEBGPU_ROWS : Infinity);
    this.steps = (ResidentSteps.of(runtime.module(), session, model) ?? new TensorSteps(runtime, session, model)) as Steps<unknown>;
  }

  /** An empty cache. */
  start(): Cache {
    try {
      return { held: this.steps.start(), length: 0 };
    } catch (cause) {
      throw runtimeError(cause, "the decoder's cache cannot be made");
    }
  }

  /** The prompt's next ids (N), with rows (N, D) of which those of image tokens are read; null: none is one.
   * Returns the last token's logits (V), valid until the next call. Throws "prompt" where they do not fit the context. */
  async prefill(ids: readonly number[], rows: Float32Array | null, cache: Cache): Promise<Float32Array> {
    this.checkRoom(cache.length + ids.length);
    return this.run(BigInt64Array.from(ids, BigInt), rows, cache);
  }

  /** Throws TapeoutError "prompt" for a prompt of so many tokens that it does not fit, or of none. */
  checkRoom(tokens: number): void {
    if (!tokens || tokens > this.context)
      throw new TapeoutError("prompt", `a prompt of ${tokens} tokens does not fit the context of ${this.context}`, "Ask a shorter question.");
  }

  /** One more token; returns as `prefill` does. */
  step(id: number, cache: Cache): Promise<Float32Array> {
    this.one[0] = BigInt(id);
    return this.run(this.one, null, cache);
  }

  /** Gives back what the cache holds. */
  release(cache: Cache): void {
    this.steps.release(cache.held);
  }

  async close(): Promise<void> {
    try {
      this.steps.close();
    } finally {
      await this.session.release();
    }
  }

  private async run(ids: BigInt64Array, rows: Float32Array | null, cache: Cache): Promise<Float32Array> {
    try {
      const logits = await this.steps.run(ids, rows, cache.length + ids.length, cache.held);
      cache.length += ids.length;
      return logits;
    } catch (cause) {
      throw runtimeError(cause, `the decoder failed after ${cache.length} tokens`);
    }
  }
}

/** MatMulNBits of onnxruntime-web 1.30 on WebGPU takes another kernel from 32 rows on, whose logits were off by up to 2.3
 * where those of up to 31 agree with WebAssembly's to 1e-5 (4 bits, groups of 32, float32, on SwiftShader). */
const WEBGPU_ROWS = 31;
