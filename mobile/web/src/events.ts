/** What a model tells while it opens and works: mobile/spec/README.md, "Events" and "Metrics". */
import type { PlainError } from "./errors";

export type Backend = "webgpu" | "wasm";

export type TapeoutEvent =
  | { type: "progress"; loaded: number; total: number; file: string } // bytes of the whole bundle
  | { type: "metrics"; scope: "open"; metrics: OpenMetrics }
  | { type: "metrics"; scope: "answer"; metrics: AnswerMetrics }
  | { type: "fallback"; from: string; to: string; reason: string } // a URL or a backend that did not work, and what is used
  | { type: "update"; version: string; digest: string } // a newer version is in place now
  | { type: "update_failed"; error: PlainError } // the newer version does not work here; the last good one is used
  | { type: "offline"; error: PlainError } // the server was not asked; what is in place is used
  | { type: "restored"; digest: string; error: PlainError }; // back to the last good version

/** Times in milliseconds. */
export interface OpenMetrics {
  download_bytes: number;
  download_ms: number;
  verify_ms: number;
  load_ms: number; // the runtime and the sessions
  self_test_ms: number; // 0 where the version in place had passed it before
  from: "network" | "store";
}

/** Times in milliseconds, from when the answer's turn came. */
export interface AnswerMetrics {
  prepare_ms: number; // decoding and resizing the image
  encode_ms: number; // 0 where the image's visual tokens were still there
  prefill_ms: number;
  first_token_ms: number; // to the first token: all of the above and its choice
  token_ms: number; // median of the further tokens; 0 where there was none
  tokens: number;
  tokens_per_s: number; // of the further tokens
  /** The WebAssembly memory of the runtime: its highest, for it never shrinks. Weights, caches and activations lie in it,
   * but for those that WebGPU holds. */
  peak_memory_bytes: number;
  backend: Backend;
  threads: number;
}

/** One answer. ids: its tokens, without the end's. stop: the end token came, maxTokens were given, the context is full. */
export interface Result {
  text: string;
  ids: number[];
  stop: "end" | "length" | "context";
  metrics: AnswerMetrics;
}
