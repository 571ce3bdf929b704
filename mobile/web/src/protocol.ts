/** What page and worker say to each other. Only the worker holds the model; only the page holds callbacks and signals. */
import type { PlainError } from "./errors";
import type { Backend, OpenMetrics, Result, TapeoutEvent } from "./events";

declare const TAPEOUT_BUILD: string | undefined; // by build.mjs

/** Which build this script is of: page and worker must be of one, and after an update of the site they may not be. */
export const BUILD = typeof TAPEOUT_BUILD === "string" ? TAPEOUT_BUILD : "";

/** An image as it crosses to the worker: cloned, but for those that the page made for this purpose. */
export type Source = Blob | ImageData | ImageBitmap | VideoFrame;

/** The same key: the same image, whose visual tokens may still be there. */
export interface Picture {
  source: Source;
  key: number;
}

export interface WorkerOptions {
  keys?: string[];
  digest?: string;
  backend?: Backend;
  threads?: number;
  memory?: "normal" | "low";
  update?: "check" | "never";
  assets?: string;
}

/** What is known of an open model. questions: those of its self-test, with the answers expected. */
export interface Info {
  name: string;
  version: string;
  digest: string;
  backend: Backend;
  threads: number;
  questions: { image: string | null; question: string; answer: string }[];
}

export type ToWorker =
  | { type: "open"; build: string; urls: string[]; options: WorkerOptions }
  | { type: "ask"; id: number; picture: Picture | null; question: string; maxTokens?: number }
  | { type: "abort"; id: number }
  | { type: "stop" }; // opening; the page ends the worker soon after

export type FromWorker =
  | { type: "event"; event: TapeoutEvent }
  | { type: "opened"; info: Info; metrics: OpenMetrics }
  | { type: "failed"; error: PlainError } // to open
  | { type: "piece"; id: number; text: string }
  | { type: "answered"; id: number; text: string; result: Result } // text: the pieces not said yet
  | { type: "refused"; id: number; error: PlainError };
