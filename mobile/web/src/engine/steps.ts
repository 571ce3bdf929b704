/** One run of a decoder: through onnxruntime-web's own interface, or (resident.ts) with caches that stay where they are. */
import type { InferenceSession, Tensor } from "onnxruntime-web";
import type { ModelDescription } from "../manifest";
import type { Runtime } from "./runtime";

export interface Steps<Held> {
  /** An empty cache. */
  start(): Held;
  /** Runs ids (N) with rows (N, D) of visual tokens, null: none is one, to `total` positions; `held` then holds those too.
   * Returns the logits of the last row that the decoder gives, valid until the next call. Throws what the runtime throws. */
  run(ids: BigInt64Array, rows: Float32Array | null, total: number, held: Held): Promise<Float32Array>;
  /** Gives back what the cache holds. */
  release(held: Held): void;
  /** Gives back what this holds; the session is its owner's. */
  close(): void;
}

export const PAST = "past_key_values.";
export const PRESENT = "present.";

/** The names of the caches, as the decoder takes and gives them. */
export function cachesOf(session: InferenceSession): { past: string; present: string }[] {
  const pasts = session.inputNames.filter((name) => name.startsWith(PAST));
  return pasts.map((past) => ({ past, present: past.replace(PAST, PRESENT) }));
}

/** Tensors by their names. On WebAssembly each run copies all caches in and out; on WebGPU they stay in its memory. */
export class TensorSteps implements Steps<Record<string, Tensor>> {
  private readonly caches: { past: string; present: string }[];
  private readonly mask: BigInt64Array; // ones; only its length is read
  private readonly single: BigInt64Array = new BigInt64Array(1);
  private readonly token: Tensor; // over `single`
  private readonly keep: Tensor;
  private readonly blank: Tensor;
  private readonly takes: Set<string>;

  constructor(
    private readonly runtime: Runtime,
    private readonly session: InferenceSession,
    private readonly model: ModelDescription,
  ) {
    const { Tensor } = runtime.ort;
    this.takes = new Set(session.inputNames);
    this.caches = cachesOf(session);
    this.mask = new BigInt64Array(model.context).fill(1n);
    this.token = new Tensor("int64", this.single, [1, 1]);
    this.keep = new Tensor("int64", BigInt64Array.of(1n), [1]);
    this.blank = new Tensor("float32", new Float32Array(model.hidden), [1, 1, model.hidden]);
  }

  start(): Record<string, Tensor> {
    const { kv_heads: heads, head_dim: width } = this.model;
    const empty = () => new this.runtime.ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
    return Object.fromEntries(this.caches.map(({ past }) => [past, empty()]));
  }

  async run(ids: BigInt64Array, rows: Float32Array | null, total: number, held: Record<string, Tensor>): Promise<Float32Array> {
    const { Tensor } = this.runtime.ort;
    const one = ids.length === 1;
    if (one) this.single[0] = ids[0]!;
    held["input_ids"] = one ? this.token : new Tensor("int64", ids, [1, ids.length]);
    if (this.takes.has("attention_mask")) held["attention_mask"] = new Tensor("int64", this.mask.subarray(0, total), [1, total]);
    if (this.takes.has("logits_to_keep")) held["logits_to_keep"] = this.keep;
    if (this.takes.has("image_features"))
      held["image_features"] = rows ? new Tensor("float32", rows, [1, ids.length, this.model.hidden]) : this.blank;
    const outputs = await this.session.run(held);
    for (const { past, present } of this.caches) {
      if (held[past]!.location === "gpu-buffer") held[past]!.dispose();
      held[past] = outputs[present]!;
    }
    const logits = outputs["logits"]!.data as Float32Array;
    const answered = outputs["logits"]!.dims[1]!; // one, unless this bundle's decoder does not know logits_to_keep
    return answered === 1 ? logits : logits.subarray(logits.length - logits.length / answered);
  }

  release(held: Record<string, Tensor>): void {
    for (const { past } of this.caches) held[past]?.dispose();
    for (const name of Object.keys(held)) delete held[name];
  }

  close(): void {}
}
